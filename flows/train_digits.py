"""Train a model that reads handwritten digits: tasks, progress, a metric per epoch, a portable model file.

The model is a logistic regression on the 1,797 images of 8 x 8 pixels that come
with scikit-learn. It is saved as plain numbers, because a pickle runs code
when it is loaded and breaks with the next version: `model.npz` holds the arrays
`coefficients` (10 x 64) and `intercepts` (10); `Model.read` shows how to use them.
"""

from collections.abc import Iterator
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from prefect import flow, task
from pydantic import Field
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import confusion_matrix, log_loss
from sklearn.model_selection import train_test_split

from prefect_executions import current_execution, method

DIGITS = np.arange(10)
CELL = 44  # pixels per cell in the image of the confusion matrix


class Samples(NamedTuple):
    """Images, as rows of 64 numbers from 0 to 1, and the digits that they show."""

    pixels: NDArray[np.float64]
    digits: NDArray[np.int64]


class Model(NamedTuple):
    """A linear model: the weight of each of the 64 pixels for each of the 10 digits."""

    coefficients: NDArray[np.float64]
    intercepts: NDArray[np.float64]

    def read(self, pixels: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the digit in each image."""
        return np.argmax(pixels @ self.coefficients.T + self.intercepts, axis=1)


@task
def load_samples(seed: int) -> tuple[Samples, Samples]:
    """Return scikit-learn's digits as a training set (three quarters) and a held-out test set (one quarter)."""
    pixels, digits = load_digits(return_X_y=True)
    train, test, train_digits, test_digits = train_test_split(
        pixels / 16, digits, test_size=0.25, stratify=digits, random_state=seed
    )
    return Samples(train, train_digits), Samples(test, test_digits)


def epochs_of(samples: Samples, epochs: int, learning_rate: float, seed: int) -> Iterator[SGDClassifier]:
    """Yield the classifier after each epoch; every epoch trains and yields the same object."""
    classifier = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=learning_rate, random_state=seed)
    for _ in range(epochs):
        yield classifier.partial_fit(*samples, classes=DIGITS)


@task
def train(samples: Samples, held_out: Samples, epochs: int, learning_rate: float, seed: int) -> Model:
    """Return the trained model, and log its accuracy on the held-out digits after each epoch."""
    execution = current_execution()
    for epoch, classifier in enumerate(epochs_of(samples, epochs, learning_rate, seed), start=1):
        accuracy = classifier.score(*held_out)
        loss = log_loss(held_out.digits, classifier.predict_proba(held_out.pixels))
        execution.log_metrics({"accuracy": accuracy, "loss": loss}, step=epoch)
        execution.progress(100 * epoch / epochs, f"epoch {epoch} of {epochs}, accuracy {accuracy:.1%}")
    return Model(classifier.coef_, classifier.intercept_)


def draw(confusion: NDArray[np.int64]) -> Image.Image:
    """Return the confusion matrix as an image; darker cells are more frequent."""
    picture = Image.new("RGB", (11 * CELL, 12 * CELL), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((6 * CELL, CELL / 2), "row: digit written, column: digit read", "black", anchor="mm", font_size=16)
    for digit in DIGITS:
        for place in ((digit + 1.5, 1.5), (0.5, digit + 2.5)):
            pen.text((place[0] * CELL, place[1] * CELL), str(digit), "black", anchor="mm", font_size=20)
    for (row, column), count in np.ndenumerate(confusion):
        left, top, share = (column + 1) * CELL, (row + 2) * CELL, count / confusion[row].sum()
        red, green, blue = (round(255 - share * (255 - dark)) for dark in (8, 48, 107))
        pen.rectangle((left, top, left + CELL - 2, top + CELL - 2), fill=(red, green, blue))
        if count:
            ink = "black" if red + green + blue > 3 * 127 else "white"
            pen.text((left + CELL / 2, top + CELL / 2), str(count), ink, anchor="mm", font_size=16)
    return picture


@method(
    version="1.0.0",
    title="Train a reader of digits",
    keywords=["machine learning", "classification", "digits"],
    type="Training",
    outputs={"model.npz": "application/x-npz", "confusion.png": "image/png"},
)
@flow(name="train-digits", timeout_seconds=600)
def train_digits(
    epochs: Annotated[int, Field(ge=1)] = 20, learning_rate: Annotated[float, Field(gt=0)] = 0.1, seed: int = 1
) -> float:
    """Train a logistic regression on handwritten digits and return its accuracy on held-out digits.

    Args:
        epochs: How often the model is trained on all digits.
        learning_rate: The step size of the gradient descent.
        seed: Seed of the random numbers: the same seed gives the same model.
    """
    execution = current_execution()
    samples, held_out = load_samples(seed)
    execution.log_params({"trained_on": len(samples.digits), "tested_on": len(held_out.digits)})
    model = train(samples, held_out, epochs, learning_rate, seed)
    np.savez(execution.output("model.npz"), **model._asdict())

    confusion = confusion_matrix(held_out.digits, model.read(held_out.pixels), labels=DIGITS)
    draw(confusion).save(execution.output("confusion.png"))
    written, read = np.unravel_index(np.argmax(confusion - np.diag(confusion.diagonal())), confusion.shape)
    execution.note(f"most frequent mistake: a {written} read as a {read}, {confusion[written, read]} times")
    return float(confusion.trace() / confusion.sum())
