"""Images and videos from a database."""
from typing import Any


def image_input(
        model: Any, blob_in: Any, blob_out: list, order: str = "NCHW",
        use_gpu_transform: bool = False, **kwargs) -> Any:
    """Read, decode and transform a batch of images; `is_test` is required.

    Parameters
    ----------
    blob_in : database reader
    blob_out : list
        Images, labels and further outputs.
    use_gpu_transform : bool
        Whether the last step, to order NCHW too, is done on the GPU.
    """
    assert "is_test" in kwargs, "Argument 'is_test' is required"
    if order != "NCHW":
        return model.net.ImageInput(blob_in, blob_out, **kwargs)
    if use_gpu_transform:
        return model.net.ImageInput(blob_in, blob_out, use_gpu_transform=1, **kwargs)
    images, *others = model.net.ImageInput(
        blob_in, [blob_out[0] + "_nhwc", *blob_out[1:]], **kwargs)
    return (model.net.NHWC2NCHW(images, blob_out[0]), *others)


def video_input(model: Any, blob_in: Any, blob_out: Any, **kwargs) -> Any:
    """Read, decode and transform a batch of video clips."""
    return model.net.VideoInput(blob_in, blob_out, **kwargs)
