"""The room of scores: one file per score, one line per file."""

TABLE = (
    "top1",
    "topk",
    "agreement",
    "sqnr",
    "mse",
    "rmse",
    "mae",
    "f1",
    "auc",
    "map",
    "miou",
    "perplexity",
    "spearman",
    "python",
)
