"""The networks of both papers in NumPy: what the tests hold the library against.

Written from the papers and from what Caffe and torchvision compute, with tables and
loops of its own and nothing of `vgg_jax`, so that one mistake cannot be on both sides.

    seen = vgg("D", params, images)

takes parameters by name, {"conv1_1": {"kernel": HWIO, "bias"}, "bn1_1": {"scale",
"bias", "mean", "var"}}, and images NHWC; it returns every intermediate by name in the
order of computation, then "score_map" and "logits". It computes in the images' dtype.
"""

from collections.abc import Callable, Mapping

import numpy as np

Params = Mapping[str, Mapping[str, np.ndarray]]
Arrays = dict[str, np.ndarray]

# arXiv:1409.1556, Table 1; the number after a colon is the side of the kernel.
TABLE_1 = {
    "A": """conv1_1:3 pool1
            conv2_1:3 pool2
            conv3_1:3 conv3_2:3 pool3
            conv4_1:3 conv4_2:3 pool4
            conv5_1:3 conv5_2:3 pool5""",
    "B": """conv1_1:3 conv1_2:3 pool1
            conv2_1:3 conv2_2:3 pool2
            conv3_1:3 conv3_2:3 pool3
            conv4_1:3 conv4_2:3 pool4
            conv5_1:3 conv5_2:3 pool5""",
    "C": """conv1_1:3 conv1_2:3 pool1
            conv2_1:3 conv2_2:3 pool2
            conv3_1:3 conv3_2:3 conv3_3:1 pool3
            conv4_1:3 conv4_2:3 conv4_3:1 pool4
            conv5_1:3 conv5_2:3 conv5_3:1 pool5""",
    "D": """conv1_1:3 conv1_2:3 pool1
            conv2_1:3 conv2_2:3 pool2
            conv3_1:3 conv3_2:3 conv3_3:3 pool3
            conv4_1:3 conv4_2:3 conv4_3:3 pool4
            conv5_1:3 conv5_2:3 conv5_3:3 pool5""",
    "E": """conv1_1:3 conv1_2:3 pool1
            conv2_1:3 conv2_2:3 pool2
            conv3_1:3 conv3_2:3 conv3_3:3 conv3_4:3 pool3
            conv4_1:3 conv4_2:3 conv4_3:3 conv4_4:3 pool4
            conv5_1:3 conv5_2:3 conv5_3:3 conv5_4:3 pool5""",
}


def convolve(
    x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, stride: int, padding: int
) -> np.ndarray:
    """The sum over kernel positions of a shifted image times that position's matrix."""
    side, _, inputs, outputs = kernel.shape
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((n - side) // stride + 1 for n in x.shape[1:3])
    out = np.tile(bias.astype(x.dtype), (len(x) * height * width, 1))
    for i in range(side):
        for j in range(side):
            rows = slice(i, i + stride * (height - 1) + 1, stride)
            columns = slice(j, j + stride * (width - 1) + 1, stride)
            out += x[:, rows, columns].reshape(-1, inputs) @ kernel[i, j].astype(
                x.dtype
            )
    return out.reshape(len(x), height, width, outputs)


def pool(
    x: np.ndarray,
    window: int,
    stride: int,
    ceil: bool,
    reduce: Callable[..., np.ndarray],
) -> np.ndarray:
    """`reduce` (np.max, np.mean) over the pixels that each window has, axis by axis."""
    for axis in (1, 2):
        size = x.shape[axis]
        free = size - window
        count = (-(-free // stride) if ceil else free // stride) + 1
        parts = [
            reduce(
                np.take(x, range(s, min(s + window, size)), axis),
                axis=axis,
                keepdims=True,
            )
            for s in range(0, count * stride, stride)
        ]
        x = np.concatenate(parts, axis)
    return x


def normalize_response(
    x: np.ndarray, n: int, alpha: float, beta: float, k: float
) -> np.ndarray:
    """Krizhevsky et al. 2012, section 3.3, channel by channel."""
    out = np.empty_like(x)
    channels = x.shape[-1]
    for i in range(channels):
        first, last = max(0, i - n // 2), min(channels - 1, i + n // 2)
        total = sum(x[..., j] ** 2 for j in range(first, last + 1))
        out[..., i] = x[..., i] / (k + alpha * total) ** beta
    return out


class Run:
    """One forward pass: each call transforms `x` and notes it under a name."""

    def __init__(
        self, params: Params, images: np.ndarray, batch_statistics: bool = False
    ):
        self.params = params
        self.x = images
        self.batch_statistics = batch_statistics
        self.seen: Arrays = {}

    def note(self, name: str) -> None:
        assert name not in self.seen, name
        self.seen[name] = self.x

    def conv(self, name: str, side: int, stride: int = 1, padding: int = 0) -> None:
        kernel, bias = self.params[name]["kernel"], self.params[name]["bias"]
        assert kernel.shape[:2] == (side, side), name
        self.x = convolve(self.x, kernel, bias, stride, padding)
        self.note(name)

    def relu(self, name: str) -> None:
        self.x = np.where(self.x > 0, self.x, 0)
        self.note(name)

    def max_pool(self, name: str, window: int, stride: int, ceil: bool) -> None:
        self.x = pool(self.x, window, stride, ceil, np.max)
        self.note(name)

    def average_pool(self, name: str, window: int, stride: int, ceil: bool) -> None:
        self.x = pool(self.x, window, stride, ceil, np.mean)
        self.note(name)

    def batch_norm(self, name: str) -> None:
        bn = {
            key: value.astype(self.x.dtype) for key, value in self.params[name].items()
        }
        mean, var = bn["mean"], bn["var"]
        if self.batch_statistics:
            mean, var = self.x.mean((0, 1, 2)), self.x.var((0, 1, 2))
        self.x = (self.x - mean) / np.sqrt(var + 1e-5) * bn["scale"] + bn["bias"]
        self.note(name)

    def local_response_norm(self, constants: str) -> None:
        if constants == "krizhevsky":
            self.x = normalize_response(self.x, n=5, alpha=1e-4, beta=0.75, k=2)
        elif constants == "caffe":
            self.x = normalize_response(self.x, n=5, alpha=2e-5, beta=0.75, k=1)
        else:
            raise ValueError(constants)
        self.note("norm1")

    def dropout(self, name: str) -> None:
        """Nothing when evaluating."""
        self.note(name)

    def scores(self) -> Arrays:
        return self.seen | {"score_map": self.x, "logits": self.x.mean(axis=(1, 2))}


def vgg(
    letter: str,
    params: Params,
    images: np.ndarray,
    *,
    head: str | None = "paper",
    fc_kernel: int = 7,
    ceil: bool = False,
    batch_norm: bool = False,
    lrn: str | None = None,
    batch_statistics: bool = False,
) -> Arrays:
    """A network of Table 1 by its letter; without a head up to pool5."""
    run = Run(params, images, batch_statistics)
    for word in TABLE_1[letter].split():
        if word.startswith("pool"):
            run.max_pool(word, window=2, stride=2, ceil=ceil)
            continue
        name, side = word.split(":")
        run.conv(name, int(side), padding={"3": 1, "1": 0}[side])
        place = name.removeprefix("conv")
        if batch_norm:
            run.batch_norm("bn" + place)
        run.relu("relu" + place)
        if lrn is not None and name == "conv1_1":
            run.local_response_norm(lrn)
    if head is None:
        return run.seen
    if head == "paper":
        run.conv("fc6", fc_kernel)
        run.relu("relu6")
        run.dropout("drop6")
        run.conv("fc7", 1)
        run.relu("relu7")
        run.dropout("drop7")
    else:
        run.dropout("drop5")
    run.conv("fc8", 1)
    return run.scores()


def nin_imagenet(
    params: Params, images: np.ndarray, *, final_relu: bool = False
) -> Arrays:
    """The Caffe zoo's network; the ReLU that its file has on the scores is optional."""
    run = Run(params, images)
    run.conv("conv1", 11, stride=4)
    run.relu("relu_conv1")
    run.conv("cccp1", 1)
    run.relu("relu_cccp1")
    run.conv("cccp2", 1)
    run.relu("relu_cccp2")
    run.max_pool("pool1", 3, 2, ceil=True)
    run.conv("conv2", 5, padding=2)
    run.relu("relu_conv2")
    run.conv("cccp3", 1)
    run.relu("relu_cccp3")
    run.conv("cccp4", 1)
    run.relu("relu_cccp4")
    run.max_pool("pool2", 3, 2, ceil=True)
    run.conv("conv3", 3, padding=1)
    run.relu("relu_conv3")
    run.conv("cccp5", 1)
    run.relu("relu_cccp5")
    run.conv("cccp6", 1)
    run.relu("relu_cccp6")
    run.max_pool("pool3", 3, 2, ceil=True)
    run.dropout("drop3")
    run.conv("conv4", 3, padding=1)
    run.relu("relu_conv4")
    run.conv("cccp7", 1)
    run.relu("relu_cccp7")
    run.conv("cccp8", 1)
    if final_relu:
        run.relu("relu_cccp8")
    return run.scores()


def nin_cifar(
    params: Params, images: np.ndarray, *, final_relu: bool = False
) -> Arrays:
    """The authors' CIFAR-10 network; as above for the ReLU on the scores."""
    run = Run(params, images)
    run.conv("conv1", 5, padding=2)
    run.relu("relu_conv1")
    run.conv("cccp1", 1)
    run.relu("relu_cccp1")
    run.conv("cccp2", 1)
    run.relu("relu_cccp2")
    run.max_pool("pool1", 3, 2, ceil=True)
    run.dropout("drop1")
    run.conv("conv2", 5, padding=2)
    run.relu("relu_conv2")
    run.conv("cccp3", 1)
    run.relu("relu_cccp3")
    run.conv("cccp4", 1)
    run.relu("relu_cccp4")
    run.average_pool("pool2", 3, 2, ceil=True)
    run.dropout("drop2")
    run.conv("conv3", 3, padding=1)
    run.relu("relu_conv3")
    run.conv("cccp5", 1)
    run.relu("relu_cccp5")
    run.conv("cccp6", 1)
    if final_relu:
        run.relu("relu_cccp6")
    return run.scores()


def nin_tutorial(
    params: Params, images: np.ndarray, *, final_relu: bool = True
) -> Arrays:
    """The tutorial's network for Fashion-MNIST, with a ReLU on its scores."""
    run = Run(params, images)
    run.conv("conv1", 11, stride=4)
    run.relu("relu_conv1")
    run.conv("cccp1", 1)
    run.relu("relu_cccp1")
    run.conv("cccp2", 1)
    run.relu("relu_cccp2")
    run.max_pool("pool1", 3, 2, ceil=False)
    run.conv("conv2", 5, padding=2)
    run.relu("relu_conv2")
    run.conv("cccp3", 1)
    run.relu("relu_cccp3")
    run.conv("cccp4", 1)
    run.relu("relu_cccp4")
    run.max_pool("pool2", 3, 2, ceil=False)
    run.conv("conv3", 3, padding=1)
    run.relu("relu_conv3")
    run.conv("cccp5", 1)
    run.relu("relu_cccp5")
    run.conv("cccp6", 1)
    run.relu("relu_cccp6")
    run.max_pool("pool3", 3, 2, ceil=False)
    run.dropout("drop3")
    run.conv("conv4", 3, padding=1)
    run.relu("relu_conv4")
    run.conv("cccp7", 1)
    run.relu("relu_cccp7")
    run.conv("cccp8", 1)
    if final_relu:
        run.relu("relu_cccp8")
    return run.scores()
