import pytest
import torch
from PIL import Image

from recipes.data.udacity import read_drive, read_frame
from tests.recipes.drives import STEP, angle, draw_frames, write_evaluation, write_export


@pytest.mark.parametrize("write", [write_evaluation, write_export])
def test_frames_and_angles_in_order_of_time(tmp_path, write):
    log = write(tmp_path / "drive", 6)
    header, *rows = log.read_text().splitlines()
    log.write_text("\n".join([header, *reversed(rows)]) + "\n")
    drive = read_drive(tmp_path / "drive")
    assert drive.angles.tolist() == [angle(index) for index in range(6)]
    times = [int(frame.stem) for frame in drive.frames]
    assert [later - earlier for earlier, later in zip(times, times[1:], strict=False)] == [STEP] * 5
    for frame in drive.frames:
        assert read_frame(frame).shape == (3, 66, 200)


def test_pixels_are_those_of_the_file_with_red_first(tmp_path):
    Image.new("RGB", (200, 66), (250, 0, 0)).save(tmp_path / "red.png")
    frame = read_frame(tmp_path / "red.png")
    assert frame.dtype == torch.uint8
    assert [channel.unique().tolist() for channel in frame] == [[250], [0], [0]]


def test_larger_frames_are_scaled_as_a_whole(tmp_path):
    image = Image.new("RGB", (640, 480))
    image.paste((255, 255, 255), (0, 0, 320, 480))
    image.save(tmp_path / "half.png")
    frame = read_frame(tmp_path / "half.png").float()
    assert frame[:, :, :98].min() == 255
    assert frame[:, :, 102:].max() == 0


def test_a_missing_log_says_which_and_what_to_set(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read_drive(tmp_path)
    for part in ("CH2_final_evaluation.csv or interpolated.csv", str(tmp_path), "`data.root`", "`data.drives`", "http"):
        assert part in str(error.value)


@pytest.mark.parametrize("write", [write_evaluation, write_export])
def test_missing_frames_are_counted(tmp_path, write):
    write(tmp_path, 5)
    gone = sorted((tmp_path / "center").glob("*.jpg"))[1:3]
    for path in gone:
        path.unlink()
    with pytest.raises(FileNotFoundError, match=f"but 2 of them are missing, the first is center/{gone[0].name}"):
        read_drive(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steering_angle", "angle", "but steering_angle is not there"),
        (",0.0,", ",none,", "Expected numbers in the column steering_angle .* got 'none' in row 1"),
        (",0.0,", ",nan,", "got 'nan' in row 1"),
        (",0.0,", ",inf,", "got 'inf' in row 1"),
        (",0.0,", ",,", "got '' in row 1"),
    ],
)
def test_a_broken_evaluation_log_is_refused(tmp_path, old, new, message):
    log = write_evaluation(tmp_path, 3)
    log.write_text(log.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read_drive(tmp_path)


def test_a_log_without_the_center_camera_is_refused(tmp_path):
    log = write_export(tmp_path, 3)
    log.write_text(log.read_text().replace("center_camera", "top_camera"))
    with pytest.raises(ValueError, match="Expected frames of the center camera"):
        read_drive(tmp_path)


def test_an_empty_log_is_refused(tmp_path):
    (tmp_path / "interpolated.csv").write_text("")
    with pytest.raises(ValueError, match="Expected a table"):
        read_drive(tmp_path)


@pytest.mark.parametrize("kept", [0, 300])
def test_a_broken_frame_is_named(tmp_path, kept):
    (name,) = draw_frames(tmp_path, 1)
    path = tmp_path / "center" / f"{name}.jpg"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"Expected a sound image in {path}, but its data are broken"):
        read_frame(path)
