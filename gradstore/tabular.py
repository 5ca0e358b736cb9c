"""Tabular results in notebooks and pandas."""

from __future__ import annotations

from abc import ABC, abstractmethod
from html import escape
from typing import TYPE_CHECKING, Any, Final

from gradstore.errors import DependencyError
from gradstore.text import one_line

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

# Maximum rows that a notebook shows.
_SHOWN: Final = 20


class Tabular(ABC):
    """A result with a table: subclasses define `to_table`, and other methods use it."""

    @abstractmethod
    def to_table(self) -> pa.Table:
        """The result as a table."""

    def to_pandas(self) -> pd.DataFrame:
        """The result as a pandas data frame, with the rows of `to_table`.

        Raises:
            DependencyError: if pandas is not installed.
        """
        try:
            import pandas  # noqa: F401
        except ImportError as error:
            raise DependencyError(
                "a data frame needs pandas: pip install pandas. `to_table` needs only pyarrow."
            ) from error
        frame: pd.DataFrame = self.to_table().to_pandas()
        return frame

    def _repr_html_(self) -> str:
        """The first rows, for notebooks."""
        return html_table(self.to_table(), str(self))


def html_table(table: pa.Table, caption: str) -> str:
    """The first rows of a table as HTML.

    Examples:
        >>> import pyarrow as pa
        >>> html_table(pa.table({"a": [1]}), "one")
        '<table><caption>one</caption><tr><th>a</th></tr><tr><td>1</td></tr></table>'
    """
    head = "".join(f"<th>{escape(one_line(name))}</th>" for name in table.column_names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_text(value))}</td>" for value in row.values()) + "</tr>"
        for row in table.slice(0, _SHOWN).to_pylist()
    )
    left = len(table) - _SHOWN
    more = f" ({left:,} more rows)" if left > 0 else ""
    caption = f"<caption>{escape(caption)}{more}</caption>"
    return f"<table>{caption}<tr>{head}</tr>{body}</table>"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "" if value is None else one_line(str(value))
