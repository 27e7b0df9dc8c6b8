"""The Methods in flows/: their scientific results, and the bundles that their runs leave."""

from __future__ import annotations

import csv
import json
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from prefect.exceptions import ParameterTypeError
from skimage.draw import disk
from sklearn.datasets import load_digits, load_iris

from flows.count_words import ENTANGLED_BANK, count_words, words_in
from flows.segment_coins import Edges, Markers, Segmentation, label_coins, regions_of, segment_coins
from flows.segment_coins import draw as draw_regions
from flows.train_digits import DIGITS, Model, Samples, draw, epochs_of, load_samples, train_digits
from prefect_executions import Method, background
from prefect_executions.bundles.verify import verify
from prefect_executions.errors import ScriptError
from prefect_executions.executions.record import ExecuteRequest
from prefect_executions.methods.model import InputFile

FLOWS = Path(__file__).parents[1] / "flows"
ROWS_OF_COINS = (0, 90, 155, 225, 303)  # pixels between which the photograph shows its four rows of six coins


class Bundle:
    """The one bundle in a home, read as a stranger would: as files."""

    def __init__(self, home: Path) -> None:
        (self.folder,) = (folder for folder in (home / "workbench").iterdir() if not folder.name.startswith("."))

    def metadata(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / "metadata" / f"{name}.json").read_bytes())

    @property
    def inputs(self) -> Mapping[str, Any]:
        return ExecuteRequest.from_json((self.folder / "metadata" / "request.json").read_bytes()).values

    def output(self, name: str) -> Path:
        return self.folder / "outputs" / name

    def table(self, name: str) -> list[dict[str, str]]:
        return list(csv.DictReader(self.output(name).read_text().splitlines()))

    def picture(self, name: str) -> Image.Image:
        with Image.open(self.output(name)) as picture:
            return picture.copy()

    def metrics(self, name: str) -> list[tuple[int | None, float]]:
        told = self.metadata("metrics")["metrics"]
        return [(metric.get("step"), metric["value"]) for metric in told if metric["name"] == name]


@pytest.fixture
def bundle_of_the_run(home, prefect_server):
    """Return a function that gives the sealed bundle of the run before, which three judges found whole."""

    def sealed(status: str = "COMPLETED") -> Bundle:
        bundle = Bundle(home)
        background.drain()
        assert bundle.metadata("jobStatus")["executionStatus"] == status
        assert verify(bundle.folder).faults == ()
        subprocess.run(["sha256sum", "--check", "--quiet", "manifest-sha256.txt"], cwd=bundle.folder, check=True)
        assert (home / "archive" / "executions" / bundle.folder.name / "seal.json").exists()
        return bundle

    return sealed


# --- count_words ----------------------------------------------------------------------


def test_words_are_counted_as_grep_and_wc_count_them():
    counts = words_in(ENTANGLED_BANK.read_text())
    for word in ("the", "and", "forms", "life", "evolved"):
        found = subprocess.run(["grep", "-oiw", word, ENTANGLED_BANK], capture_output=True, check=True)
        assert counts[word] == len(found.stdout.splitlines())
    total = subprocess.run(["wc", "-w", ENTANGLED_BANK], capture_output=True, check=True)
    assert counts.total() == int(total.stdout.split()[0])


def test_what_surrounds_a_word_does_not_count():
    counted = words_in("Don't — “don't”! (well-known) 42 naïve, Ärger_ДОМ")
    assert counted == {"don't": 2, "well-known": 1, "naïve": 1, "ärger": 1, "дом": 1}


@given(st.lists(st.sampled_from(["bank", "life", "less-improved"])), st.sampled_from([" ", "\n", ", ", " ... ", '" "']))
def test_every_word_is_counted_once(words, between):
    assert words_in(between.join(words)) == Counter(words)


def test_count_words_leaves_its_text_and_its_table(bundle_of_the_run):
    assert count_words(most=3) == 219
    bundle = bundle_of_the_run()
    assert bundle.output("counts.csv").read_text() == "word,count\nand,12\nof,11\nthe,11\n"
    assert bundle.metrics("words") == [(None, 219)]
    (staged,) = bundle.metadata("request")["files"]
    assert staged["origin"] == ENTANGLED_BANK.path.as_uri()
    assert (bundle.folder / staged["path"]).read_text() == ENTANGLED_BANK.read_text()
    (kept,) = (bundle.folder / "code").rglob("count_words.py")
    assert kept.read_bytes() == (FLOWS / "count_words.py").read_bytes()


# --- segment_coins --------------------------------------------------------------------


@pytest.fixture(scope="module")
def photograph():
    return skimage.data.coins()


@pytest.mark.parametrize("edges", Edges)
def test_four_rows_of_six_coins_are_found(photograph, edges):
    table = regions_of(label_coins(photograph, Segmentation(edges=edges)), photograph)
    assert list(table["region"]) == list(range(1, 25))
    assert list(np.histogram(table["row"], ROWS_OF_COINS)[0]) == [6, 6, 6, 6]
    assert table["eccentricity"].max() < 0.6, "coins are round"


def test_discs_are_measured_as_they_were_drawn():
    grey = np.full((200, 300), 10, dtype=np.uint8)
    drawn = [(50, 60, 20), (60, 200, 35.5), (150, 120, 12)]
    for row, column, radius in drawn:
        grey[disk((row, column), radius)] = 220
    table = regions_of(label_coins(grey, Segmentation()), grey)
    measured = sorted(zip(table["row"], table["column"], table["diameter"] / 2, strict=True))
    np.testing.assert_allclose(measured, sorted(drawn), atol=0.75)
    np.testing.assert_allclose(table["area"], [np.pi * (diameter / 2) ** 2 for diameter in table["diameter"]])


def test_a_speck_is_no_coin(photograph):
    assert label_coins(photograph, Segmentation(smallest=1)).max() == 25
    assert label_coins(photograph, Segmentation(smallest=3000)).max() == 1


def test_a_dark_picture_shows_no_coin():
    grey = np.full((40, 60), 5, dtype=np.uint8)
    labels = label_coins(grey, Segmentation())
    table = regions_of(labels, grey)
    assert [len(column) for column in table.values()] == [0] * 7
    assert draw_regions(labels, grey, table).size == (120, 80)


def test_segment_coins_leaves_a_picture_a_table_and_metrics(bundle_of_the_run):
    assert segment_coins(how=Segmentation(edges=Edges.PREWITT)) == 24
    bundle = bundle_of_the_run()
    assert len(bundle.table("regions.csv")) == 24
    assert bundle.picture("labels.png").size == (768, 606)
    assert bundle.metrics("coins") == [(None, 24)]
    assert 0 < bundle.metrics("coverage")[0][1] < 1
    diameters = [float(row["diameter"]) for row in bundle.table("regions.csv")]
    assert bundle.metrics("mean_diameter")[0][1] == pytest.approx(np.mean(diameters))


def test_segment_coins_tells_its_settings_in_the_form_and_in_the_record(bundle_of_the_run):
    segment_coins(how=Segmentation(markers=Markers(coin=140)))
    bundle = bundle_of_the_run()
    how = bundle.metadata("method")["inputs"]["how"]["schema"]["properties"]
    assert how["edges"]["enum"] == ["sobel", "scharr", "prewitt"]
    assert how["markers"]["properties"]["coin"]["maximum"] == 255
    assert bundle.inputs["how"] == {
        "edges": "sobel",
        "markers": {"background": 30, "coin": 140},
        "smallest": 200,
    }


def test_segment_coins_refuses_a_grey_value_that_no_pixel_can_have(bundle_of_the_run):
    with pytest.raises(ParameterTypeError, match="coin"):
        segment_coins(how={"markers": {"coin": 300}})
    assert bundle_of_the_run("FAILED").metadata("request")["validated"] is False


def test_segment_coins_fails_by_name_where_there_is_no_photograph(bundle_of_the_run, tmp_path):
    with pytest.raises(Exception, match="photograph"):
        segment_coins(photograph=InputFile(tmp_path / "no.png"))
    bundle_of_the_run("FAILED")


# --- train_digits ---------------------------------------------------------------------


def trained(epochs: int, seed: int) -> tuple[Model, Samples]:
    samples, held_out = load_samples.fn(seed)
    *_, last = epochs_of(samples, epochs, 0.1, seed)
    return Model(last.coef_, last.intercept_), held_out


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_digits_that_were_held_out_are_read(seed):
    model, held_out = trained(20, seed)
    assert (model.read(held_out.pixels) == held_out.digits).mean() > 0.94


def test_a_model_that_learned_nothing_of_it_reads_no_better_than_chance():
    samples, held_out = load_samples.fn(1)
    shuffled = samples._replace(digits=np.random.default_rng(1).permutation(samples.digits))
    *_, last = epochs_of(shuffled, 20, 0.1, 1)
    read = Model(last.coef_, last.intercept_).read(held_out.pixels)
    assert (read == held_out.digits).mean() < 0.3


def test_no_digit_is_both_trained_and_tested_on():
    samples, held_out = load_samples.fn(1)
    assert (len(samples.digits), len(held_out.digits)) == (1347, 450)
    together = np.vstack([samples.pixels, held_out.pixels]) * 16
    assert sorted(map(tuple, together)) == sorted(map(tuple, load_digits().data))
    assert np.bincount(held_out.digits).min() > 40, "each digit has its share"


def test_the_same_seed_gives_the_same_model():
    one, other = trained(3, 7)[0], trained(3, 7)[0]
    assert (one.coefficients == other.coefficients).all()
    assert (one.coefficients != trained(3, 8)[0].coefficients).any()


def test_the_confusion_picture_is_darkest_where_all_digits_fall():
    picture = draw(np.diag([40] * 10))
    corner = [picture.getpixel((44 * (column + 1) + 3, 44 * 2 + 3)) for column in DIGITS]
    assert corner == [(8, 48, 107)] + [(255, 255, 255)] * 9


def test_train_digits_leaves_a_model_that_reads_without_pickle(bundle_of_the_run):
    accuracy = train_digits(epochs=5)
    bundle = bundle_of_the_run()
    with np.load(bundle.output("model.npz"), allow_pickle=False) as kept:
        model = Model(**kept)
    held_out = load_samples.fn(1)[1]
    assert (model.read(held_out.pixels) == held_out.digits).mean() == pytest.approx(accuracy)
    assert bundle.picture("confusion.png").size == (484, 528)


def test_train_digits_tells_each_epoch(bundle_of_the_run):
    accuracy = train_digits(epochs=5)
    bundle = bundle_of_the_run()
    assert [step for step, _ in bundle.metrics("accuracy")] == [1, 2, 3, 4, 5]
    assert bundle.metrics("accuracy")[-1] == (5, pytest.approx(accuracy))
    assert bundle.metrics("loss")[-1][1] < bundle.metrics("loss")[0][1]
    assert bundle.metadata("metrics")["params"] == {"trained_on": 1347, "tested_on": 450}
    status = bundle.metadata("jobStatus")
    assert status["progress"] == 100
    assert any("read as a" in entry.get("message", "") for entry in status["history"])


@pytest.mark.long
def test_train_digits_run_twice_leaves_the_same_model(home, prefect_server):
    train_digits(epochs=3)
    train_digits(epochs=3)
    models = [path.read_bytes() for path in (home / "workbench").glob("*/outputs/model.npz")]
    assert len(models) == 2
    assert models[0] == models[1]


# --- separate_irises ------------------------------------------------------------------


def test_fishers_coefficients_of_1936_come_out(bundle_of_the_run):
    Method.from_file(FLOWS / "separate_irises" / "method.yaml")()
    bundle = bundle_of_the_run()
    iris = load_iris()
    setosa, versicolor = (iris.data[iris.target == kind] for kind in (0, 1))
    scatter = (np.cov(setosa.T) + np.cov(versicolor.T)) * 49
    expected = np.linalg.solve(scatter, setosa.mean(0) - versicolor.mean(0))
    table = bundle.table("coefficients.csv")

    assert np.allclose([float(row["coefficient"]) for row in table], expected, atol=1e-8)
    # "X = x1 + 5.9037 x2 - 7.1299 x3 - 10.1036 x4", Annals of Eugenics 7, 179-188; by hand, and cut, not rounded
    assert [abs(float(row["relative"])) for row in table] == pytest.approx([1, 5.9037, 7.1299, 10.1036], abs=1.5e-4)
    scores = np.array([float(row["score"]) for row in bundle.table("flowers.csv")])
    assert np.allclose(scores, np.vstack([setosa, versicolor]) @ expected, atol=1e-7)
    assert bundle.output("stdout.log").read_text() == "100 flowers, 0 of them placed wrongly\n"


def test_the_irises_are_those_that_everybody_has():
    table = np.genfromtxt(FLOWS / "data" / "iris.csv", delimiter=",", skip_header=1)
    assert np.array_equal(table[:, :4], load_iris().data)


def test_one_species_is_not_separated_from_itself(home, prefect_server):
    with pytest.raises(ScriptError, match="deploy-script ended with exit code 2"):
        Method.from_file(FLOWS / "separate_irises" / "method.yaml")(one="virginica", other="virginica")
