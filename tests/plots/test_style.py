"""Colors and PNG files."""

import subprocess
import sys

import pytest
from helpers.drawn import make_run
from matplotlib.colors import is_color_like
from matplotlib.figure import Figure
from PIL import Image

from kerasnorm.norms import NORMS
from kerasnorm.plots.curves import loss_figure
from kerasnorm.plots.style import Picture, new_figure, save


def test_every_norm_has_its_own_color():
    assert all(is_color_like(norm.color) for norm in NORMS.values())
    assert len({norm.color for norm in NORMS.values()}) == len(NORMS)


class TestFiles:
    def test_files_say_nothing_of_who_and_when(self, tmp_path):
        save(loss_figure([make_run()]).figure, tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            assert image.format == "PNG"
            assert image.width == 1200
            assert set(image.info) <= {"dpi"}

    def test_a_picture_names_its_file(self, tmp_path):
        picture = Picture("name", new_figure(1.0), "Title", "Caption.", "Alt.")
        path = picture.save(tmp_path / "new" / "folder")
        assert path == tmp_path / "new" / "folder" / "name.png"
        assert path.read_bytes().startswith(b"\x89PNG")

    def test_a_failed_drawing_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "a.png"
        path.write_bytes(b"old")
        broken = Figure()
        broken.text(0.5, 0.5, r"$\broken$")
        with pytest.raises(ValueError, match="broken"):
            Picture("a", broken, "", "", "").save(tmp_path)
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]


def test_neither_pyplot_nor_keras_is_imported():
    code = (
        "import sys, kerasnorm.plots as p; p.learning_rate_figure([]);"
        "print(*{'keras', 'torch', 'tensorflow', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""
