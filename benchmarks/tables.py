"""Put the tables of benchmarks/results into benchmarks/README.md, between its `table:` and `end:` comments."""

import re
from pathlib import Path

HERE = Path(__file__).parent


def fill(text: str, results: Path) -> str:
    """`text` with every table that has results; the others stay as they are."""

    def table(match: re.Match[str]) -> str:
        path = results / f"{match['name']}.md"
        body = path.read_text().strip() if path.exists() else match["body"].strip()
        return f"<!-- table: {match['name']} -->\n\n{body}\n\n<!-- end: {match['name']} -->"

    return re.sub(r"<!-- table: (?P<name>\S+) -->(?P<body>.*?)<!-- end: (?P=name) -->", table, text, flags=re.DOTALL)


def main() -> None:
    """Rewrite the README."""
    readme = HERE / "README.md"
    readme.write_text(fill(readme.read_text(), HERE / "results"))


if __name__ == "__main__":
    main()
