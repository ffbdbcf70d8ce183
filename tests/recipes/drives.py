"""Small drives in the layouts of Udacity's challenge."""

from pathlib import Path

import numpy as np
from PIL import Image

EXPORT_HEADER = "index,timestamp,width,height,frame_id,filename,angle,torque,speed,lat,long,alt"
START = 1479425441182877835
STEP = 49826590


def draw_frames(folder: Path, count: int, size=(200, 66), camera: str = "center") -> list[str]:
    """Write noisy frames in which a bright bar stands where the wheel points; their times."""
    generator = np.random.default_rng(0)
    (folder / camera).mkdir(parents=True)
    names = [str(START + STEP * index) for index in range(count)]
    for index, name in enumerate(names):
        image = generator.integers(0, 60, (size[1], size[0], 3)).astype(np.uint8)
        image[:, int(size[0] * (0.5 - angle(index))) :][:, :20] += 180
        Image.fromarray(image).save(folder / camera / f"{name}.jpg")
    return names


def angle(index: int) -> float:
    return round(0.3 * float(np.sin(index)), 6)


def write_evaluation(folder: Path, count: int = 20) -> Path:
    names = draw_frames(folder, count)
    rows = [f"{name},{angle(index)},{index % 2}" for index, name in enumerate(names)]
    path = folder / "CH2_final_evaluation.csv"
    path.write_text("\n".join(["frame_id,steering_angle,public", *rows]) + "\n")
    return path


def write_export(folder: Path, count: int = 20) -> Path:
    """Three cameras in turn, as the export has them; only the center ones exist as files, of the recordings' size."""
    names = draw_frames(folder, count, size=(640, 480))
    rows = [
        f"2016-11-17 23:30:41.{index:06},{int(name) + shift},640,480,{camera}_camera,{camera}/{int(name) + shift}.jpg,"
        f"{angle(index)},-0.1,12.5,37.4,-122.1,-30.2"
        for index, name in enumerate(names)
        for shift, camera in enumerate(("center", "left", "right"))
    ]
    path = folder / "interpolated.csv"
    path.write_text("\n".join([EXPORT_HEADER, *rows]) + "\n")
    return path
