"""The room of data sources: one file per kind, one line per file."""

TABLE = (
    "npz",
    "images",
    "csv",
    "python",
    "random",
)
