"""The same graph on a GPU: it shows what the CPU graph shows, and its batches are torch's own."""

import pytest
import torch

pytest.importorskip("nvidia.dali", reason="DALI is not installed")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.real_gpu,  # DALI's CUDA runtime is its own
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("split", ["train", "val"])
def test_gpu_and_cpu_show_the_same(photo_files, files_source, loader_of, split):
    source = files_source(photo_files)
    loaders = [loader_of(source, split, image_size=56, device=device) for device in ("cuda", "cpu")]
    for one, other in zip(*(loader.epoch(0) for loader in loaders), strict=True):
        assert one.images.is_cuda and one.labels.is_cuda and one.weights.is_cuda
        assert one.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one.labels.cpu(), other.labels)
        # in training the GPU repeats chroma samples where the CPU interpolates them, which is faster
        limit = 2 if split == "val" else 6
        assert ((one.images.cpu() - other.images).abs().mean(dim=(1, 2, 3)) * 255).max() <= limit


@pytest.mark.parametrize("split", ["train", "val"])
def test_arrays_on_the_gpu(numbered, loader_of, split):
    loaders = [loader_of(numbered(9), split, device=device) for device in ("cuda", "cpu")]
    for one, other in zip(*(loader.epoch(0) for loader in loaders), strict=True):
        assert (one.images.cpu() - other.images).abs().mean() < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gpu_batches_stay_valid(photo_files, files_source, loader_of, dtype):
    loader = loader_of(files_source(photo_files), device="cuda", dtype=dtype, prefetch=2)
    kept, sums = [], []
    for epoch in range(4):
        for batch in loader.epoch(epoch):
            kept.append(batch.images)
            sums.append(batch.images.double().sum())
    assert all(images.dtype == dtype for images in kept)
    assert all(torch.equal(images.double().sum(), total) for images, total in zip(kept, sums, strict=True))


def test_a_batch_is_ready_on_the_stream_that_asked(photo_files, files_source, loader_of):
    expected = next(loader_of(files_source(photo_files), "val", device="cuda").epoch(0)).images
    torch.cuda.synchronize()
    loader = loader_of(files_source(photo_files), "val", device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        images = next(loader.epoch(0)).images.clone()
    torch.cuda.synchronize()
    assert torch.equal(images, expected)


def test_nasty_files_on_the_gpu(unpacked, files_source, loader_of):
    paths = sorted(path for path in unpacked("nasty").iterdir() if path.suffix != ".tsv")
    loaders = [loader_of(files_source(paths), "val", image_size=96, device=device) for device in ("cuda", "cpu")]
    for one, other in zip(*(loader.epoch(0) for loader in loaders), strict=True):
        assert torch.equal(one.weights.cpu(), other.weights)
        assert ((one.images.cpu() - other.images).abs().mean(dim=(1, 2, 3)) * 255).max() <= 2
    assert [image.path for image in loaders[0].bad_images] == [image.path for image in loaders[1].bad_images]
