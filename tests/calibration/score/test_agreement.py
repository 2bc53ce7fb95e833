"""Agreement of each precision with fp32."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

from aeseg_edge.calibration.score.agreement import gate, measure_agreement
from aeseg_edge.errors import CalibrationError

INT8 = ("int8", "onnxruntime")
FP16 = ("fp16", "tensorrt")


def frame(*labels: int) -> np.ndarray:
    """A frame of one row whose first channel is its fp32 labels."""
    return np.array(labels, np.uint8)[None, :, None].repeat(3, axis=2)


def fp32(image: np.ndarray) -> np.ndarray:
    return image[..., 0].copy()


def with_2_as_1(image: np.ndarray) -> np.ndarray:
    labels = fp32(image)
    labels[labels == 2] = 1
    return labels


def test_each_candidate_gets_its_share_iou_and_worst_frame() -> None:
    frames = [frame(0, 0, 1, 1), frame(0, 1, 2, 2), frame(0, 0, 0, 2)]
    found = measure_agreement(fp32, {FP16: fp32, INT8: with_2_as_1}, frames, [0, 1, 2, 7])
    assert list(found) == [FP16, INT8]
    assert found[FP16].labels_equal == 1.0
    assert found[FP16].iou == {0: 1.0, 1: 1.0, 2: 1.0, 7: None}
    int8 = found[INT8]
    assert int8.labels_equal == 9 / 12
    assert int8.iou == {0: 1.0, 1: 3 / 6, 2: 0.0, 7: None}
    assert (int8.frames, int8.worst_frame, int8.worst_labels_equal) == (3, 1, 0.5)
    assert int8.minimum_iou == 0.0


def test_the_reference_runs_once_a_frame_and_frames_are_read_once() -> None:
    calls: list[int] = []

    def counted(image: np.ndarray) -> np.ndarray:
        calls.append(int(image[0, 0, 0]))
        return fp32(image)

    def frames() -> Iterator[np.ndarray]:
        for label in range(5):
            yield frame(label)

    measure_agreement(counted, {"a": fp32, "b": fp32, "c": fp32}, frames(), [0])
    assert calls == [0, 1, 2, 3, 4]


def test_large_frames_weigh_by_their_pixels() -> None:
    frames = [frame(0, 0, 0, 0, 0, 0, 0, 0), frame(2, 2)]
    found = measure_agreement(fp32, {INT8: with_2_as_1}, frames, [0])
    assert found[INT8].labels_equal == 0.8


def test_void_in_both_counts_nowhere_and_void_in_one_counts_as_different() -> None:
    def forgets_void(image: np.ndarray) -> np.ndarray:
        labels = fp32(image)
        labels[0, 3] = 0
        return labels

    image = frame(0, 1, 255, 255)
    found = measure_agreement(fp32, {"same": fp32, "other": forgets_void}, [image], [0, 1])
    assert found["same"].labels_equal == 1.0
    assert found["other"].labels_equal == pytest.approx(2 / 3)
    assert found["other"].iou == {0: 0.5, 1: 1.0}


def test_a_frame_that_is_all_void_is_not_the_worst() -> None:
    found = measure_agreement(fp32, {INT8: with_2_as_1}, [frame(255), frame(1, 2)], [1])
    assert (found[INT8].worst_frame, found[INT8].worst_labels_equal) == (1, 0.5)
    assert found[INT8].frames == 2


def test_the_gate_returns_what_is_below_the_minimum() -> None:
    frames = [frame(*[0] * 19, 2)]
    found = measure_agreement(fp32, {FP16: fp32, INT8: with_2_as_1}, frames, [0])
    assert gate(found) == {}  # 0.95 is enough
    assert list(gate(found, 0.951)) == [INT8]


def test_figures_are_json() -> None:
    found = measure_agreement(fp32, {INT8: with_2_as_1}, [frame(0, 1, 2)], [0, 2, 5])
    assert json.loads(json.dumps(found[INT8].to_json(), allow_nan=False)) == {
        "labels_equal": 0.666667,
        "iou": {"0": 1.0, "2": 0.0, "5": None},
        "frames": 1,
        "worst_frame": 0,
        "worst_labels_equal": 0.666667,
        "minimum_iou": 0.0,
    }


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(CalibrationError, match="no frames"):
        measure_agreement(fp32, {INT8: fp32}, [], [0])
    with pytest.raises(CalibrationError, match="void"):
        measure_agreement(fp32, {INT8: fp32}, [frame(255, 255)], [0])


def test_labels_of_another_size_or_type_are_refused() -> None:
    with pytest.raises(CalibrationError, match="int8"):
        measure_agreement(fp32, {INT8: lambda f: fp32(f)[:, 1:]}, [frame(0, 1)], [0])
    with pytest.raises(CalibrationError, match="int64"):
        measure_agreement(fp32, {INT8: lambda f: fp32(f).astype(np.int64)}, [frame(0, 1)], [0])
