"""Runs the DALI graph over a schedule: reads ahead, keeps batches in flight, survives bad files.

The graph is fed, not left to read by itself: that makes the position a plain (epoch, step), and a failed batch can be
fed again without the file at fault. Threads read the next batches' bytes while DALI decodes those before, and one more
prepares them for it while the training thread takes its step.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from engine.config.pixels.image_size import px
from engine.data.bad_images import BadImage, ImageFiles, find_culprits
from engine.data.graph import crops, pipeline
from engine.data.graph.finishing import Finishing, FinishingThreads
from engine.data.graph.pipeline import GraphSettings, build_graph
from engine.data.loader import Batch, Loader, Position, Request, fill_bad_slots, worker_count
from engine.data.sources.reading import Unreachable, Unreadable

READ_CHUNK = 16
"""Files that one task of a reading thread takes at most."""
FAILURES = (RuntimeError, ValueError, IndexError)
"""What DALI raises for a batch that it cannot process; the class depends on the operator, not on the cause."""
NO_MEMORY = "std::bad_alloc"
"""What it says where host memory is out: no image is at fault."""


@dataclass
class Item:
    """A batch on its way: what was asked for, and the bytes that were read for it."""

    request: Request
    loaded: list[np.ndarray | Unreadable]
    """uint8 [bytes] or [H, W, C] a slot, or why there is none."""
    slots: np.ndarray | None = None
    """Slot whose image is shown in each slot; None where all are bad and black is shown."""
    good: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool))
    """bool [m], whether a slot shows its own image."""
    fed: list[np.ndarray] | None = None
    """The arrays that DALI reads from, which must outlive the run."""
    mirror: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool))
    """bool [m], whether the image in a slot is mirrored."""
    unreached: dict[int, BadImage] = field(default_factory=dict)
    """Images, by index, that the disk did not give this time; they are tried again in the next epoch."""


class DaliLoader(Loader):
    """See Loader. On a CUDA device the GPU decodes; else DALI's threads do."""

    backend = "dali"

    def __init__(self, *arguments, **settings) -> None:
        super().__init__(*arguments, **settings)
        self.files = ImageFiles(self.data, self.preprocessing.bits) if self.data.encoded else None
        self.graph_settings = GraphSettings(
            encoded=self.files is not None,
            train=self.train,
            preprocessing=self.preprocessing,
            half=self.dtype == torch.float16,
            raw=self.augmentation is not None,
            device=self.device,
            threads=worker_count(self.config.workers),
            windows=self.train and self.device.type != "cuda" and self.preprocessing.bits == 8,
        )
        self._finish: FinishingThreads | None = None
        if self.graph_settings.windows:
            finishing = Finishing(self.preprocessing, raw=self.augmentation is not None)
            self._finish = FinishingThreads(finishing, worker_count(self.config.workers))
        self._bad: dict[int, BadImage] = {}
        self._graph: Any = None
        self._flight: deque[Item] = deque()
        self._reading: deque[tuple[Request, list[Future]]] = deque()
        self._threads = ThreadPoolExecutor(self.config.readers, thread_name_prefix="hcr-read")
        self._preparer: Executor = ThreadPoolExecutor(1, thread_name_prefix="hcr-prepare")
        self._prepared: Future | None = None
        """What comes of the flight being filled in the other thread: until it is there, the flight is that thread's."""

    def close(self) -> None:
        """Stop the reading threads and free the graph; harmless when repeated."""
        self._iterator_number += 1
        self._preparer.shutdown(wait=True)
        self._threads.shutdown(wait=True, cancel_futures=True)
        if self._finish is not None:
            self._finish.close()
        self._reading.clear()
        self._graph = None
        self._flight.clear()

    def avoid(self, crashes: Mapping[str, str]) -> None:
        if self.files is None or not crashes:
            return
        self._wait()
        for index, path in enumerate(self.data.paths or ()):
            if reason := crashes.get(path):
                self._bad[index] = BadImage(path, reason)
            elif reason is not None:
                self.files.by_pillow.add(index)

    def _wait(self) -> None:
        """Until the other thread has filled the flight; raises what it met there."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            prepared.result()

    def _batch(self, position: Position) -> Batch:
        self._wait()
        if not self._flight or self._flight[0].request.position != position:
            self._discard_flight()
        self._fill_flight(position)
        images = self._take()
        item = self._flight.popleft()
        known = self._bad | item.unreached
        bad = {int(i): known[int(i)] for i in item.request.share.indices if int(i) in known}
        self._report(bad)
        following = self.schedule.following(position)
        if following is not None:
            self._prepared = self._preparer.submit(self._fill_flight, following)
        indices = item.request.share.indices
        shown = indices if item.slots is None else indices[item.slots]
        return self._assemble(item.request, images, shown, item.good, bad)

    def _fill_flight(self, position: Position) -> None:
        """Keep `prefetch` batches in DALI, the first of them `position`, and as many being read behind them."""
        wanted: Position | None = self._flight[-1].request.position if self._flight else None
        wanted = self.schedule.following(wanted) if wanted else position
        while wanted is not None and len(self._flight) < self.config.prefetch:
            item = self._read(wanted)
            self._feed(item)
            self._flight.append(item)
            wanted = self.schedule.following(wanted)
        while wanted is not None and len(self._reading) < self.config.prefetch:
            ahead = self._reading[-1][0].position if self._reading else None
            wanted = self.schedule.following(ahead) if ahead else wanted
            if wanted is not None:
                self._reading.append(self._start_reading(wanted))

    def _start_reading(self, position: Position) -> tuple[Request, list[Future]]:
        request = self.schedule.request(position)
        self.note([*(item.request for item in self._flight), *(ahead for ahead, _ in self._reading), request])
        indices = request.share.indices
        size = max(1, min(READ_CHUNK, len(indices) // self.config.readers))
        chunks = [indices[i : i + size].tolist() for i in range(0, len(indices), size)]
        return request, [self._threads.submit(self._load, chunk) for chunk in chunks]

    def _read(self, position: Position) -> Item:
        """The bytes at `position`, read ahead if it was foreseen."""
        if self._reading and self._reading[0][0].position != position:
            self._reading.clear()
        if not self._reading:
            self._reading.append(self._start_reading(position))
        request, futures = self._reading.popleft()
        return Item(request, [sample for future in futures for sample in future.result()])

    def _load(self, indices: Sequence[int]) -> list[np.ndarray | Unreadable]:
        """Images by index, in a reading thread."""
        loaded: list[np.ndarray | Unreadable] = []
        for index in indices:
            if index in self._bad:
                loaded.append(Unreadable(self._bad[index].reason))
                continue
            try:
                if self.files is None:
                    loaded.append(self.data.pixels(index, self.preprocessing.channels))
                else:
                    loaded.append(np.frombuffer(self.files.load(index), dtype=np.uint8))
            except Unreadable as error:
                loaded.append(error)
        return loaded

    def _feed(self, item: Item) -> None:
        """Give a batch to DALI, good images in the slots of bad ones."""
        indices = item.request.share.indices
        for index, sample in zip(indices.tolist(), item.loaded, strict=True):
            if isinstance(sample, Unreachable):
                item.unreached[index] = BadImage(self.data.path(index), str(sample), transient=True)
            elif isinstance(sample, Unreadable) and index not in self._bad:
                self._bad[index] = BadImage(self.data.path(index), str(sample))
        filling = fill_bad_slots(indices, self._bad.keys() | item.unreached.keys())
        if filling is None:
            item.slots, item.good = None, np.zeros(len(indices), dtype=bool)
        else:
            item.slots, item.good = filling
        if self._graph is None:
            self._graph = self._new_graph(self.largest_share, self.config.prefetch)
        item.fed = self._run_on(self._graph, item, range(len(indices)))

    def _run_on(self, graph: Any, item: Item, members: Sequence[int]) -> list[np.ndarray]:
        """Schedule a graph on some slots of a batch; returns what it reads from."""
        if item.slots is None:
            black = _black(self.graph_settings)
            images, sizes = [black[0]] * len(members), np.array([black[1]] * len(members))
        else:
            slots = item.slots[list(members)]
            images = [item.loaded[slot] for slot in slots]
            sizes = self._sizes(item.request.share.indices[slots], images)
        graph.feed_input(pipeline.IMAGES, images, layout=None if self.graph_settings.encoded else "HWC")
        if self.train:
            draws = item.request.draws[list(members) if item.slots is None else slots]
            start, shape = self.window(sizes, draws)
            graph.feed_input(pipeline.START, start)
            graph.feed_input(pipeline.SHAPE, shape)
            item.mirror = (draws[:, 4] < 0.5) & self.flip
            if self._finish is None:
                graph.feed_input(pipeline.MIRROR, item.mirror.astype(np.int32))
        else:
            wanted = self.preprocessing
            region = crops.evaluation_region(sizes, wanted.image_size, wanted.eval_crop)
            graph.feed_input(pipeline.REGION, region)
        graph.schedule_run()
        return images

    def _sizes(self, indices: np.ndarray, images: list[np.ndarray]) -> np.ndarray:
        if self.files is None:
            return np.array([image.shape[:2] for image in images])
        return self.files.sizes[indices]

    def _new_graph(self, batch_size: int, depth: int) -> Any:
        """A graph whose first, deep run is behind it: from then on one run is one batch."""
        graph = build_graph(self.graph_settings, batch_size, depth)
        image, size = _black(self.graph_settings)
        for _ in range(depth):
            graph.feed_input(pipeline.IMAGES, [image], layout=None if self.graph_settings.encoded else "HWC")
            if self.train:
                graph.feed_input(pipeline.START, np.zeros((1, 2), np.int32))
                graph.feed_input(pipeline.SHAPE, np.array([size], np.int32))
                if self._finish is None:
                    graph.feed_input(pipeline.MIRROR, np.zeros(1, np.int32))
            else:
                graph.feed_input(pipeline.REGION, np.array([(0, 0, *size)], np.float32))
        graph.schedule_run()
        try:
            for _ in range(depth):
                graph.outputs()
        except FAILURES as error:
            self._refuse_no_memory(error)
            raise
        return graph

    def _refuse_no_memory(self, error: Exception) -> None:
        """Raise MemoryError where a failure of DALI's is none of the images."""
        if NO_MEMORY in str(error):
            images = f"{self.largest_share} images of {px(self.preprocessing.image_size)}"
            raise MemoryError(f"DALI, which prepares {self.config.prefetch} batches of up to {images}")

    def _take(self) -> torch.Tensor:
        """The oldest batch in flight, decoded; files that DALI fails on are found, and the flight is fed again."""
        while True:
            try:
                return self._outputs(self._graph)
            except FAILURES as error:
                self._refuse_no_memory(error)
                failure = error.with_traceback(None)  # its frames would keep the failed graph, and that its buffers
            self._graph = None
            if not self._diagnose(self._flight[0]):
                raise RuntimeError("DALI failed on a batch although it decodes each of its images") from failure
            for item in self._flight:
                self._feed(item)

    def _outputs(self, graph: Any) -> torch.Tensor:
        dtype = self.dtype
        if self.graph_settings.raw:
            dtype = torch.float32 if self.graph_settings.deep else torch.uint8
        if self._finish is not None:
            windows = graph.outputs()[0]
            return self._finish([np.asarray(one) for one in windows], self._flight[0].mirror).to(dtype)
        if self.device.type != "cuda":
            return pipeline.output_to_torch(graph.outputs()[0], self.device, dtype)
        stream = torch.cuda.current_stream(self.device)
        return pipeline.output_to_torch(graph.outputs(cuda_stream=stream)[0], self.device, dtype)

    def _diagnose(self, item: Item) -> bool:
        """Find the images of a failed batch that fail alone: Pillow decodes them from now on, or they are bad."""
        if item.slots is None or self.files is None:
            return False
        culprits = find_culprits(len(item.loaded), self._probe(item))
        slot_of = {int(item.request.share.indices[item.slots[slot]]): item.slots[slot] for slot in culprits}
        for index, slot in slot_of.items():
            try:
                if index in self.files.by_pillow:
                    raise Unreadable("DALI cannot decode it")
                rescued = self.files.through_pillow(index, item.loaded[slot].tobytes())
                self.files.by_pillow.add(index)
                self._reading.clear()  # what was read ahead may hold this file as DALI cannot decode it
            except Unreadable as error:
                self._bad[index] = BadImage(self.data.path(index), str(error))
                continue
            for waiting in self._flight:
                for other in np.flatnonzero(waiting.request.share.indices == index):
                    waiting.loaded[other] = np.frombuffer(rescued, dtype=np.uint8)
        return bool(culprits)

    def _probe(self, item: Item) -> Callable[[Sequence[int]], bool]:
        """Says whether some slots of a batch go through together; builds a new graph only after a failure."""
        graph = None

        def goes_through(members: Sequence[int]) -> bool:
            nonlocal graph
            if graph is None:
                graph = self._new_graph(len(item.loaded), 1)
            try:
                self._run_on(graph, item, members)
                graph.outputs()
            except FAILURES as error:
                self._refuse_no_memory(error)
                graph = None
            return graph is not None

        return goes_through

    def _discard_flight(self) -> None:
        """Drop batches that nobody will ask for, with the graph where one of them failed."""
        try:
            while self._flight:
                self._graph.outputs()
                self._flight.popleft()  # only now: DALI was reading from it
        except FAILURES:
            self._graph = None
            self._flight.clear()


def _black(settings: GraphSettings) -> tuple[np.ndarray, tuple[int, int]]:
    """A small black image as the graph takes it, and its height and width."""
    side = 8
    if not settings.encoded:
        return np.zeros((side, side, settings.preprocessing.channels), dtype=np.uint8), (side, side)
    data = io.BytesIO()
    Image.new("RGB", (side, side)).save(data, "BMP")
    return np.frombuffer(data.getvalue(), dtype=np.uint8), (side, side)
