"""Find the coins in a photograph: typed settings as input; an image, a table and metrics as output.

The algorithm is that of scikit-image's example "Comparing edge-based and region-based
segmentation": a watershed of the edge map, flooded from the pixels that are
certainly background and certainly coin. The photograph is scikit-image's own: Greek
coins from Pompeii, Brooklyn Museum, no known copyright restrictions.
"""

import csv
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import skimage
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import BaseModel, Field
from scipy import ndimage
from skimage import color, filters, io, measure, segmentation, util

from prefect_executions import InputFile, current_execution, method

COINS = InputFile(Path(skimage.data.data_dir) / "coins.png")

BACKGROUND, COIN = 1, 2  # markers from which the watershed floods

Grey = Annotated[int, Field(ge=0, le=255)]
Labels = NDArray[np.int32]


class Edges(StrEnum):
    """The filter that finds the edges."""

    SOBEL = "sobel"
    SCHARR = "scharr"
    PREWITT = "prewitt"


class Markers(BaseModel):
    """Grey values that decide alone, from 0 (black) to 255 (white)."""

    background: Grey = Field(default=30, description="Darker pixels are background.")
    coin: Grey = Field(default=150, description="Brighter pixels are coin.")


class Segmentation(BaseModel):
    """How coins are separated from the background."""

    edges: Edges = Edges.SOBEL
    markers: Markers = Markers()
    smallest: int = Field(default=200, ge=1, description="Regions with fewer pixels are specks, not coins.")


DEFAULT = Segmentation()


def label_coins(grey: NDArray[np.uint8], how: Segmentation) -> Labels:
    """Return an image of the same shape that is 0 on the background and 1, 2, 3, … on the coins."""
    markers = np.zeros(grey.shape, dtype=np.int32)
    markers[grey < how.markers.background] = BACKGROUND
    markers[grey > how.markers.coin] = COIN
    flooded = segmentation.watershed(getattr(filters, how.edges)(grey), markers)
    labels = measure.label(ndimage.binary_fill_holes(flooded == COIN))
    specks = np.flatnonzero(np.bincount(labels.ravel()) < how.smallest)
    labels[np.isin(labels, specks)] = 0
    return segmentation.relabel_sequential(labels)[0].astype(np.int32)


def regions_of(labels: Labels, grey: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Return the table of regions by column; lengths are in pixels, areas in square pixels."""
    properties = ("label", "centroid", "area", "equivalent_diameter_area", "eccentricity", "intensity_mean")
    table = measure.regionprops_table(labels, grey, properties=properties)
    names = ("region", "row", "column", "area", "diameter", "eccentricity", "brightness")
    return dict(zip(names, table.values(), strict=True))


def draw(labels: Labels, grey: NDArray[np.uint8], table: dict[str, NDArray[Any]]) -> Image.Image:
    """Return the photograph, twice as large, with each region tinted, outlined and numbered."""
    tinted = segmentation.mark_boundaries(color.label2rgb(labels, grey, alpha=0.25, bg_label=0), labels)
    picture = Image.fromarray(util.img_as_ubyte(tinted)).resize((2 * grey.shape[1], 2 * grey.shape[0]))
    pen = ImageDraw.Draw(picture)
    for region, row, column in zip(table["region"], table["row"], table["column"], strict=True):
        place = (2 * column, 2 * row)
        pen.text(place, str(region), "white", anchor="mm", font_size=22, stroke_width=2, stroke_fill="black")
    return picture


@method(
    version="1.0.0",
    title="Segment coins",
    keywords=["image", "segmentation", "watershed"],
    type="Analysis",
    outputs={"labels.png": "image/png", "regions.csv": "text/csv"},
)
def segment_coins(photograph: InputFile = COINS, how: Segmentation = DEFAULT) -> int:
    """Find the coins in a photograph on a dark background, outline them and measure each.

    Args:
        photograph: An image that scikit-image can read; colours are converted to grey.
        how: How coins are separated from the background.
    """
    execution = current_execution()
    grey = util.img_as_ubyte(io.imread(photograph, as_gray=True))
    labels = label_coins(grey, how)
    table = regions_of(labels, grey)

    draw(labels, grey, table).save(execution.output("labels.png"))
    with execution.output("regions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(table)
        rows.writerows(zip(*table.values(), strict=True))

    coins = len(table["region"])
    execution.log_metrics({"coins": coins, "coverage": (labels > 0).mean()})
    if coins:
        execution.log_metrics({"mean_diameter": table["diameter"].mean(), "mean_area": table["area"].mean()})
    return coins
