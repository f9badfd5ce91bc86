"""Image files: class folders of them, their order and splits, single pictures, and refusals."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from kerasnorm.data.dataset import Fit
from kerasnorm.data.pictures import fit_images, list_pictures, read_picture
from kerasnorm.data.sources import load, read
from kerasnorm.errors import ConfigError, DataError


def draw(path: Path, color: object = (10, 20, 30), mode: str = "RGB", size=(6, 5)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)
    return path


def test_train_and_test_folders(tmp_path: Path) -> None:
    root = tmp_path / "my pets"
    for number, name in enumerate(("zebra", "ant", "Bee")):
        draw(root / "train" / name / "1.png", (number, 0, 0))
        draw(root / "train" / name / "2.BMP", (number, 1, 0))
    draw(root / "test" / "ant" / "x.png", (7, 7, 7))
    (root / "train" / ".hidden").mkdir()
    (root / "train" / "ant" / ".DS_Store").write_bytes(b"x")
    (root / "train" / "ant" / ".1.png").write_bytes(b"x")
    (root / "train" / "ant" / "notes.txt").write_text("x")

    dataset = read(root)
    assert dataset.name == "my-pets"
    assert dataset.source == str(root)
    assert dataset.class_names == ("Bee", "ant", "zebra")
    assert dataset.image_shape == (5, 6, 3)
    assert dataset.train.images[:, 0, 0, 0].tolist() == [2, 2, 1, 1, 0, 0]
    assert dataset.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (dataset.test.labels.tolist(), dataset.test.images.max()) == ([1], 7)


def test_flat_folders_hold_every_fifth_image(tmp_path: Path) -> None:
    for name, count in (("a", 11), ("b", 4)):
        for number in range(count):
            draw(tmp_path / name / f"{number:02}.png", (number, 0, 0))
    dataset = read(tmp_path)
    assert "every fifth image of a class held as the test set" in dataset.source
    assert dataset.test.images[:, 0, 0, 0].tolist() == [4, 9]
    assert dataset.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 10, 0, 1, 2, 3]
    assert dataset.class_counts == {"train": (9, 4), "test": (2, 0)}


def folders_of(tmp_path: Path, *images: tuple[str, str, object]) -> Path:
    """Train and test folders of class "a" with images (file name, mode, color)."""
    for name, mode, color in images:
        draw(tmp_path / "train" / "a" / name, color, mode)
    draw(tmp_path / "test" / "a" / "0.png", 1, "L")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "mode", "color", "expected"),
    [
        ("x.png", "L", 77, [77]),
        ("x.png", "1", 1, [255]),
        ("x.png", "LA", (77, 255), [77]),
        ("x.png", "LA", (77, 51), [219]),  # 77 * 0.2 + 255 * 0.8 = 219.4
        ("x.png", "RGB", (1, 2, 3), [1, 2, 3]),
        ("x.png", "RGBA", (1, 2, 3, 255), [1, 2, 3]),
        ("x.png", "RGBA", (1, 2, 3, 0), [255, 255, 255]),
        ("x.tif", "RGBA", (10, 20, 30, 102), [157, 161, 165]),  # 0.4 of the color, 0.6 of white
        ("x.tif", "CMYK", (0, 255, 255, 0), [255, 0, 0]),
        ("x.tiff", "L", 9, [9]),
        ("x.jfif", "RGB", (9, 9, 9), [9, 9, 9]),
        ("x.ppm", "RGB", (1, 2, 3), [1, 2, 3]),
        ("x.tga", "RGB", (1, 2, 3), [1, 2, 3]),
        ("x.jp2", "L", 77, [77]),
        ("x.webp", "RGB", (0, 0, 0), [0, 0, 0]),
        ("x.gif", "RGB", (1, 2, 3), [1, 2, 3]),
        ("x.bmp", "RGB", (1, 2, 3), [1, 2, 3]),
        ("x.JPEG", "RGB", (9, 9, 9), [9, 9, 9]),
        ("x.jpg", "L", 9, [9]),
        ("x.jpg", "CMYK", (0, 0, 0, 0), [255, 255, 255]),
    ],
)
def test_modes(name: str, mode: str, color: object, expected: list[int], tmp_path: Path) -> None:
    images = read(folders_of(tmp_path, (name, mode, color))).train.images
    assert images.shape == (1, 5, 6, len(expected))
    assert images[0, 0, 0].tolist() == expected


def test_one_color_image_makes_all_rgb(tmp_path: Path) -> None:
    folder = folders_of(tmp_path, ("1.png", "L", 50), ("2.png", "RGB", (1, 2, 3)))
    dataset = read(folder)
    assert dataset.train.images[:, 0, 0].tolist() == [[50, 50, 50], [1, 2, 3]]
    assert dataset.test.images.shape[-1] == 3


def test_a_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (6, 5), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    folder = folders_of(tmp_path)
    (folder / "train" / "a").mkdir(parents=True)
    image.save(folder / "train" / "a" / "p.png", transparency=bytes([255, 128]))
    # 128 / 255 of the color over white, in levels of 255.
    assert read(folder).train.images[0, 0, 0].tolist() == [227, 177, 152]


def test_the_first_frame_of_a_moving_image(tmp_path: Path) -> None:
    folder = folders_of(tmp_path)
    (folder / "train" / "a").mkdir(parents=True)
    first, second = (Image.new("RGB", (6, 5), color) for color in ((200, 0, 0), (0, 200, 0)))
    first.save(folder / "train" / "a" / "g.gif", save_all=True, append_images=[second])
    assert read(folder).train.images[0, 0, 0].tolist() == [200, 0, 0]


def test_mixed_sizes_name_two_files(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "a" / "1.png")
    draw(tmp_path / "train" / "a" / "2.png", size=(7, 5))
    draw(tmp_path / "test" / "a" / "1.png")
    with pytest.raises(DataError, match=r"2\.png: expected .* 7x5 pixels, and 6x5 in .*1\.png"):
        read(tmp_path)


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    folder = folders_of(tmp_path, ("1.png", "L", 3))
    (folder / "train" / "nothing").mkdir()
    with pytest.raises(DataError, match="empty class nothing"):
        read(folder)


def test_an_unknown_test_class_is_named(tmp_path: Path) -> None:
    folder = folders_of(tmp_path, ("1.png", "L", 3))
    draw(folder / "test" / "b" / "1.png")
    with pytest.raises(DataError, match=r"expected the classes of the training folder, a. .*: b"):
        read(folder)


@pytest.mark.parametrize("missing", ["test", "images", "classes", "fifth"])
def test_folders_without(missing: str, tmp_path: Path) -> None:
    if missing == "test":
        draw(tmp_path / "train" / "a" / "1.png")
    elif missing == "images":
        (tmp_path / "a").mkdir()
    elif missing == "fifth":
        draw(tmp_path / "a" / "1.png")
    with pytest.raises(DataError, match=r"expected .* Received: "):
        load(str(tmp_path))


def test_deep_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.png: expected 8 bits per channel"):
        read(folders_of(tmp_path, ("x.png", "I;16", 3000)))


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp"])
def test_damaged_images(suffix: str, tmp_path: Path) -> None:
    noise = Image.fromarray(
        np.random.Generator(np.random.PCG64([0])).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    )
    folder = folders_of(tmp_path)
    path = folder / "train" / "a" / f"x.{suffix}"
    path.parent.mkdir(parents=True)
    noise.save(path)
    noise.save(folder / "test" / "a" / "0.png")
    content = path.read_bytes()
    for cut in (0, 5, 30, len(content) // 2):
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match=rf"x\.{suffix}: expected an image"):
            read(folder)
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    with pytest.raises(DataError, match=rf"x\.{suffix}: expected an image"):
        read(folder)


@pytest.mark.parametrize("limit", [20, 10])
def test_decompression_bombs_are_errors(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 30 pixels: Pillow warns above the limit, and raises above twice the limit.
    folder = folders_of(tmp_path, ("1.png", "L", 3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match=r"png: expected an image.*usual size.*DecompressionBomb"):
        read(folder)


def test_a_picture_of_the_right_size_keeps_its_pixels(tmp_path):
    pixels = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png", (5, 4, 3)), pixels)


def test_other_sizes_and_modes_are_converted(tmp_path):
    Image.new("RGBA", (50, 40), (255, 0, 0, 255)).save(tmp_path / "a.png")
    assert (read_picture(tmp_path / "a.png", (8, 6, 3)) == [255, 0, 0]).all()
    assert read_picture(tmp_path / "a.png", (8, 6, 1)).shape == (8, 6, 1)


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(DataError, match="expected an image"):
        read_picture(tmp_path / "a.png", (8, 6, 3))
    with pytest.raises(DataError, match=r"b\.png"):
        read_picture(tmp_path / "b.png", (8, 6, 3))
    with pytest.raises(ConfigError, match="5 channels"):
        read_picture(tmp_path / "a.png", (8, 6, 5))


def test_deep_pictures_and_other_formats_are_refused(tmp_path):
    Image.new("I;16", (4, 4)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="8 bits"):
        read_picture(tmp_path / "deep.png", (8, 6, 1))
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n")
    with pytest.raises(DataError, match="expected an image"):
        read_picture(tmp_path / "a.eps", (8, 6, 1))


# Where row 0 and column 0 of a stored image belong when it is shown, by EXIF orientation (tag 274
# of Exif 2.32).
SIDES = {
    1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
    5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
}  # fmt: skip
FORMATS = ["png", "tiff", "webp", "jpg", "mpo"] + ["avif"] * features.check("avif")


def stored(shown: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores of an image that is to be shown, by the definition of the tag."""
    row, column = SIDES[orientation]
    if row in ("left", "right"):
        shown = shown.swapaxes(0, 1)  # its rows are the shown image's columns
    rows = slice(None, None, -1) if row in ("right", "bottom") else slice(None)
    columns = slice(None, None, -1) if column in ("right", "bottom") else slice(None)
    return shown[rows, columns]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("orientation", SIDES)
def test_photos_are_turned_as_their_exif_says(orientation, suffix, tmp_path):
    # Four blocks of 16x16, 2 high and 3 wide with two more: no turn looks like another.
    blocks = np.array(
        [[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[250, 250, 0], [0] * 3, [250] * 3]]
    )
    shown = blocks.repeat(16, 0).repeat(16, 1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    options |= {"quality": 100, "subsampling": 0} if suffix in ("jpg", "mpo") else {}
    options |= {"quality": 100, "subsampling": "4:4:4"} if suffix == "avif" else {}
    path = tmp_path / "train" / "a" / f"x.{suffix}"
    path.parent.mkdir(parents=True)
    Image.fromarray(stored(shown, orientation)).save(path, exif=exif, **options)
    draw(tmp_path / "test" / "a" / "0.png", size=(48, 32))
    tolerance = 0 if suffix in ("png", "tiff", "webp") else 25
    for found in (read(tmp_path).train.images[0], read_picture(path, (32, 48, 3))):
        assert np.abs(found.astype(int) - shown).max() <= tolerance


def test_damaged_metadata_do_not_keep_an_image_from_being_read(tmp_path):
    path = tmp_path / "x.jpg"
    Image.new("RGB", (8, 8), (9, 9, 9)).save(path, exif=b"Exif\0\0MM\0*garbage")
    assert (read_picture(path, (8, 8, 3)) == 9).all()


def test_an_image_for_whose_turn_memory_lacks_is_not_read_unturned(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "train" / "a" / "x.jpg"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(path, exif=exif)

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    for read_it in (lambda: read_picture(path, (8, 8, 3)), lambda: read(tmp_path)):
        with pytest.raises(DataError, match=r"x\.jpg.*MemoryError"):
            read_it()


def wide() -> np.ndarray:
    """An image 4 high and 12 wide: a red third, a green and a blue one."""
    return np.eye(3, dtype=np.uint8).repeat(4, 0)[None].repeat(4, 0) * 200


def resized(how: str) -> np.ndarray:
    """What becomes of `wide` at 4x4 (crop), 12x12 (pad) and 8x12 (stretch), by hand."""
    if how == "crop":
        return wide()[:, 4:8]
    if how == "pad":
        return np.pad(wide(), ((4, 4), (0, 0), (0, 0)))
    return wide().repeat(2, 0)  # twice as high: rows are alike, so interpolation changes nothing


@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
def test_images_are_brought_to_a_size(how, tmp_path):
    expected = resized(how)
    fit = Fit(expected.shape[:2], how)
    path = tmp_path / "train" / "a" / "x.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(wide()).save(path)
    draw(tmp_path / "test" / "a" / "0.png", size=(7, 3))
    dataset = load(str(tmp_path), fit=fit)
    assert np.array_equal(dataset.train.images[0], expected)
    assert dataset.test.images.shape[1:3] == fit.size
    assert np.array_equal(read_picture(path, expected.shape, how), expected)
    arrays = np.stack([wide(), wide()[..., ::-1]])
    assert np.array_equal(fit_images(arrays, fit)[1], expected[..., ::-1])
    assert fit_images(np.repeat(arrays, 2, axis=3), fit).shape == (2, *fit.size, 6)


def test_every_source_is_brought_to_a_size():
    assert load("shapes", train_size=10, test_size=10, fit=Fit((8, 9), "pad")).image_shape == (
        8,
        9,
        3,
    )


def test_pictures_of_a_folder_are_listed_with_those_in_it(tmp_path, caplog):
    paths = [draw(tmp_path / name) for name in ("b.png", "a/c.TIF")]
    (tmp_path / "notes.txt").write_text("x")
    assert list_pictures(tmp_path) == sorted(paths)
    assert "(1 .txt): 1, such as notes.txt" in caplog.text
    assert list_pictures(tmp_path / "b.png") == [tmp_path / "b.png"]
    (tmp_path / "none").mkdir()
    (tmp_path / "notes.txt").rename(tmp_path / "none" / "notes.txt")
    with pytest.raises(DataError, match=r"expected images\. Received: 1 \.txt"):
        list_pictures(tmp_path / "none")
    with pytest.raises(DataError, match=r"gone\.png: .* no such file or folder\. Check the path"):
        list_pictures(tmp_path / "gone.png")
