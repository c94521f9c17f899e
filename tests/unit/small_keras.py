"""Small Keras models, trained for seconds on real digits and spoken vowels. Keras computes with torch here."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tests.zoo import recurrent, writing

os.environ["KERAS_BACKEND"] = "torch"  # before Keras is imported


class Trained(NamedTuple):
    """A model, the samples that it is judged by (inputs by name), their labels, and the accuracy that proves training."""

    model: Any
    inputs: dict[str, np.ndarray]
    labels: np.ndarray
    least: float


def digits(part: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 [n, 28, 28, 1] and their digits."""
    images, labels = writing.recipe_module("mnist-mlp", "data").arrays(part)
    return images[:count].reshape(-1, 28, 28, 1), labels[:count]


def trained(model: Any, inputs: Any, labels: Any, epochs: int, loss: Any = "sparse_categorical_crossentropy") -> Any:
    import keras
    import torch

    torch.set_num_threads(1)  # networks this small are slower on two
    model.compile(keras.optimizers.Adam(1e-2), loss)
    model.fit(inputs, labels, batch_size=64, epochs=epochs, verbose=0)
    return model


def mlp() -> Trained:
    """A Sequential model with dropout, that says itself nothing of names."""
    from keras import Input, Sequential, layers

    model = Sequential(
        [Input((28, 28, 1), name="image"), layers.Flatten(), layers.Dense(32, "relu"), layers.Dropout(0.2), layers.Dense(10, "softmax")]
    )
    images, labels = digits("evaluate", 300)
    return Trained(trained(model, *digits("train"), 3), {"image": images}, labels, 0.85)


def cnn() -> Trained:
    """Channels last, as Keras has them: a residual sum, batch normalizations, depthwise layers, strides with padding on one side."""
    from keras import Input, Model, layers

    image = Input((28, 28, 1), name="image")
    first = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image)
    first = layers.Activation("relu")(layers.BatchNormalization()(first))
    second = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(first)
    second = layers.ReLU(6.0)(layers.BatchNormalization()(second))
    second = layers.Conv2D(8, 1, activation="relu")(second)
    pooled = layers.MaxPooling2D()(layers.Add()([first, second]))
    last = layers.SeparableConv2D(16, 3, strides=2, padding="same", activation="relu")(pooled)
    model = Model(image, layers.Dense(10, "softmax", name="digit")(layers.Flatten()(last)))
    images, labels = digits("evaluate", 300)
    return Trained(trained(model, *digits("train"), 4), {"image": images}, labels, 0.85)


def memory() -> Trained:
    """LSTM in both directions and a GRU, over sequences of any length."""
    from keras import Input, Sequential, layers

    model = Sequential([
        Input((None, 12), name="series"),
        layers.Bidirectional(layers.LSTM(12, return_sequences=True)),
        layers.GRU(16),
        layers.Dense(9, "softmax", name="speaker"),
    ])  # fmt: skip
    series, speakers = recurrent.series("TEST")
    return Trained(trained(model, *recurrent.series("TRAIN"), 6), {"series": series[:200]}, speakers[:200], 0.7)


def attention() -> Trained:
    """One encoder layer as transformers have it."""
    from keras import Input, Model, layers

    series = Input((25, 12), name="series")
    hidden = layers.Dense(16)(series)
    hidden = layers.LayerNormalization()(hidden + layers.MultiHeadAttention(2, 8)(hidden, hidden))
    hidden = layers.LayerNormalization()(hidden + layers.Dense(16)(layers.Dense(32, "gelu")(hidden)))
    model = Model(series, layers.Dense(9, "softmax", name="speaker")(layers.GlobalAveragePooling1D()(hidden)))
    given, speakers = recurrent.series("TEST")
    return Trained(trained(model, *recurrent.series("TRAIN"), 10), {"series": given[:200]}, speakers[:200], 0.7)


def halves() -> Trained:
    """Two inputs, and a dict of two outputs."""
    from keras import Input, Model, layers

    top, bottom = Input((14, 28), name="top"), Input((14, 28), name="bottom")
    hidden = layers.Dense(24, "relu")(layers.Concatenate()([layers.Flatten()(top), layers.Flatten()(bottom)]))
    model = Model([top, bottom], {"digit": layers.Dense(10, "softmax")(hidden), "even": layers.Dense(1, "sigmoid")(hidden)})
    images, labels = digits("train")
    loss = {"digit": "sparse_categorical_crossentropy", "even": "binary_crossentropy"}
    given = {"top": images[:, :14, :, 0], "bottom": images[:, 14:, :, 0]}
    trained(model, given, {"digit": labels, "even": (labels % 2 == 0).astype(np.float32)[:, None]}, 2, loss)
    images, labels = digits("evaluate", 300)
    return Trained(model, {"top": images[:, :14, :, 0], "bottom": images[:, 14:, :, 0]}, labels, 0.8)


MODELS: dict[str, Callable[[], Trained]] = {"mlp": mlp, "cnn": cnn, "memory": memory, "attention": attention, "halves": halves}
