"""The room of passes: one file per pass, one line per file."""

TABLE = (
    "import-onnx",
    "import-torch",
    "import-pt2",
    "import-keras",
    "export-onnx",
    "convert-openvino",
    "simplify",
    "fix-shapes",
    "cast-fp16",
    "execute-bf16",
    "quantize-int8",
    "quantize-weights",
    "mixed-precision",
    "prune-channels",
    "prune-magnitude",
    "prune-2-4",
    "fine-tune",
    "train-int8",
)
