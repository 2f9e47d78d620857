"""A bank of nullspace noises with their certificates: made, saved, loaded and drawn from."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..utils.files import replaced
from ..utils.hub_upload import open_repository, upload_files
from .certificate import Certificate, remove_hidden_mean
from .config import NullspaceConfig
from .draws import ImageNoise, draw_in_axes


NOISE_TENSOR_NAME = "nullspace_noise.safetensors"


NOISE_CONFIG_NAME = "nullspace_noise.json"


class NullspaceNoise:
    """
    Noises in the approximate nullspace of one model.

    Args:
        tensor (`torch.Tensor` of shape `(bank_size, num_patches, hidden_size)`):
            The noises, in units of the patch embeddings. Kept in float32 on the CPU, hidden-axis mean removed.
        certificates (`Sequence[Certificate]`):
            One for each noise.
        config ([`NullspaceConfig`]):
            The settings they were synthesised with.
        round_index (`int`, *optional*, defaults to 0):
            The synthesis round they come from.
        axes (`torch.Tensor` of shape `(hidden_size, hidden_size)`, *optional*):
            Of `method="sample"`: every image gets a noise of its own, drawn in these axes at the norm of `tensor`, which
            is one such draw. The certificate is of one draw for each image.
        grid (`tuple[int, int]`, *optional*): `(rows, columns)` of the patches, where it is known; row by row.

    Raises:
        `ValueError`: If the tensor has no three dimensions, is not finite, or has another number of noises than there
            are certificates; if the axes have another shape, or there is more than one noise beside them.
    """

    def __init__(
        self,
        tensor: torch.Tensor,
        certificates: Sequence[Certificate],
        config: NullspaceConfig,
        round_index: int = 0,
        axes: torch.Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ):
        if not isinstance(tensor, torch.Tensor) or not isinstance(config, NullspaceConfig):
            raise TypeError(
                "A noise is made of a `torch.Tensor`, its certificates and a `NullspaceConfig`, but got a "
                f"`{type(tensor).__name__}` and a `{type(config).__name__}`."
            )
        if tensor.dim() != 3 or tensor.numel() == 0:
            raise ValueError(
                "`tensor` must have shape (bank_size, num_patches, hidden_size), each at least 1, but got "
                f"{tuple(tensor.shape)}."
            )
        if not torch.isfinite(tensor).all():
            raise ValueError("`tensor` holds NaN or infinite values; a noise must be finite.")
        if len(certificates) != tensor.shape[0]:
            raise ValueError(f"Got {len(certificates)} certificates for {tensor.shape[0]} noises; expected one each.")
        tensor = tensor.detach().to("cpu", torch.float32)
        # Not where it is removed already: doing it twice changes the last bits, and a resumed run would differ.
        has_mean = tensor.mean(-1).abs().max() > 1e-6 * tensor.abs().max()
        self.tensor = (remove_hidden_mean(tensor) if has_mean else tensor).contiguous()
        hidden_size = tensor.shape[-1]
        if axes is not None and (len(tensor) > 1 or axes.shape != (hidden_size, hidden_size)):
            raise ValueError(
                f"`axes` must have shape ({hidden_size}, {hidden_size}) and stand beside one noise, but got "
                f"{tuple(axes.shape)} beside {len(tensor)}."
            )
        if grid is not None and math.prod(grid) != tensor.shape[1]:
            raise ValueError(f"A grid of {grid[0]} x {grid[1]} does not hold the noise's {tensor.shape[1]} patches.")
        self.grid = None if grid is None else tuple(grid)
        self.axes = None if axes is None else axes.detach().to("cpu", torch.float32).contiguous()
        self.certificates = tuple(certificates)
        self.config = config
        self.round_index = round_index

    @property
    def certificate(self) -> Certificate:
        """The certificate of the bank: that of its noise with the largest `probability_mse`."""
        return max(self.certificates, key=lambda certificate: certificate.probability_mse)

    @property
    def converged(self) -> bool:
        """Whether every noise of the bank is certified."""
        return all(certificate.converged for certificate in self.certificates)

    @property
    def is_usable(self) -> bool:
        """
        Whether training runs on it: if it is certified, or under `on_failure="shrink"` if its measured mean is within
        epsilon on images that are too few, or a model that is too little trained, for a certificate.
        """
        if self.config.on_failure != "shrink":
            return self.converged
        return all(certificate.converged or certificate.is_within_epsilon for certificate in self.certificates)

    def __repr__(self) -> str:
        certificate = self.certificate
        return (
            f"NullspaceNoise(shape={tuple(self.tensor.shape)}, norm={certificate.norm:.4g}, "
            f"probability_mse={certificate.probability_mse:.4g}, epsilon={certificate.epsilon:.4g}, "
            f"converged={self.converged}, round={self.round_index})"
        )

    def pairwise_cosine(self) -> torch.Tensor:
        """Cosines between the noises of the bank, of shape `(bank_size, bank_size)`: low means diverse."""
        directions = torch.nn.functional.normalize(self.tensor.flatten(1), dim=-1)
        return directions @ directions.T

    def draw(self, batch_size: int, generator: torch.Generator, **options: Any) -> torch.Tensor:
        """Noise for each image of a batch: the first of [`~NullspaceNoise.draws`], with the same arguments."""
        return next(self.draws(1, batch_size, generator, **options))

    def draws(
        self,
        count: int,
        batch_size: int,
        generator: torch.Generator,
        random_scale: bool = False,
        convex_combination: bool = False,
        device: torch.device | str = "cpu",
    ) -> Iterator[torch.Tensor]:
        """
        Noises for each image of a batch, under whose shrinking and mixing the approximate nullspace is nearly closed.

        Args:
            count (`int`): How many for each image. Noises chosen from a bank differ, until all of it are chosen.
            batch_size (`int`): Number of images.
            generator (`torch.Generator`): Source of the draws.
            random_scale (`bool`, *optional*, defaults to `False`): Scale each image's noise by a number uniform in
                [0, 1].
            convex_combination (`bool`, *optional*, defaults to `False`): Mix the bank for each image, with weights
                uniform on the simplex, instead of choosing one noise.
            device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Where the noise is to be.

        Yields:
            `torch.Tensor` of shape `(1, num_patches, hidden_size)` if all images share one noise, else
            `(batch_size, num_patches, hidden_size)`.
        """
        bank_size = len(self.tensor)
        if self.axes is not None:
            axes, norm = self.axes.to(device), self.tensor.norm().item()
        if bank_size > 1 and not convex_combination:
            first = torch.randint(bank_size, (batch_size,), generator=generator)
        for place in range(count):
            if self.axes is not None:
                noise = draw_in_axes(axes, batch_size, self.tensor.shape[1], norm, generator)
            elif bank_size == 1:
                noise = self.tensor
            elif convex_combination:
                # Normalised exponentials are uniform on the simplex.
                weights = torch.empty(batch_size, bank_size).exponential_(generator=generator)
                noise = torch.einsum("ik,knd->ind", weights / weights.sum(-1, keepdim=True), self.tensor)
            else:
                noise = self.tensor[(first + place) % bank_size]
            if random_scale:
                noise = noise * torch.rand(batch_size, 1, 1, generator=generator).to(noise)
            yield noise.to(device)

    def image_noise(self, device: torch.device) -> ImageNoise | None:
        """The draws that a certificate is measured on, where every image gets a noise of its own."""
        if self.axes is None:
            return None
        key = (self.config.seed, self.round_index)
        return ImageNoise(self.axes.to(device), self.tensor.shape[1], self.tensor.norm().item(), key)

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """
        Writes `nullspace_noise.safetensors` and `nullspace_noise.json` into `save_directory`.

        Raises:
            `OSError`: If the folder cannot be written.
        """
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        with replaced(directory / NOISE_TENSOR_NAME) as path:
            save_file(self._tensors(), path, metadata={"format": "pt"})
        with replaced(directory / NOISE_CONFIG_NAME) as path:
            path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def digest(self) -> str:
        """SHA-256 of the tensors' bytes: two noises have the same one only if they are bitwise equal."""
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in self._tensors().values())).hexdigest()

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {"noise": self.tensor} | ({} if self.axes is None else {"axes": self.axes})

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload nullspace noise",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
    ) -> CommitInfo:
        """
        Uploads the two files of [`~NullspaceNoise.save_pretrained`] to the Hub.

        Args:
            repo_id (`str`): `"user/repo"`, or a name within the namespace of the token's owner; made if need be.
            commit_message (`str`, *optional*): Message of the commit.
            private (`bool`, *optional*): Whether a new repository is private.
            token (`str` or `bool`, *optional*): Access token; by default the one logged in with.
            revision (`str`, *optional*): Branch to commit to; made if need be.

        Raises:
            `huggingface_hub.errors.HfHubHTTPError`: If the Hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload_files(
                folder,
                [NOISE_TENSOR_NAME, NOISE_CONFIG_NAME],
                open_repository(repo_id, private, token, revision),
                commit_message=commit_message,
                token=token,
                revision=revision,
            )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensor, JSON-serialisable."""
        return {
            "shape": list(self.tensor.shape),
            "grid": None if self.grid is None else list(self.grid),
            "sha256": self.digest(),
            "round_index": self.round_index,
            "config": self.config.to_dict(),
            "certificates": [certificate.to_dict() for certificate in self.certificates],
        }

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
    ) -> NullspaceNoise:
        """
        Loads a noise from a folder or a Hub repository.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                A folder that [`~NullspaceNoise.save_pretrained`] wrote, or a repository id such as `"user/repo"`.
            revision (`str`, *optional*):
                Branch, tag or commit of the repository.
            token (`str` or `bool`, *optional*):
                Access token, for private repositories.
            cache_dir (`str` or `os.PathLike`, *optional*):
                Where downloads are cached.

        Raises:
            `FileNotFoundError`: If the folder or repository holds no noise.
            `ValueError`: If its two files are damaged or do not belong together.
        """
        folder, names = Path(pretrained_model_name_or_path), (NOISE_TENSOR_NAME, NOISE_CONFIG_NAME)
        if not folder.is_dir():
            # Both files of one commit: between two downloads the branch may move.
            options = {"revision": revision, "token": token, "cache_dir": cache_dir, "allow_patterns": list(names)}
            folder = Path(snapshot_download(str(pretrained_model_name_or_path), **options))
        paths = [folder / name for name in names]
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(
                    f"There is no {path.name} in {pretrained_model_name_or_path}; a folder written by "
                    "`NullspaceNoise.save_pretrained` or by `NullspaceTrainer` holds one."
                )
        try:
            tensors = load_file(paths[0])
            tensor = tensors["noise"]
            values = json.loads(paths[1].read_text(encoding="utf-8"))
            if list(tensor.shape) != values["shape"]:
                raise ValueError(f"the tensor has shape {list(tensor.shape)}, the JSON says {values['shape']}")
            noise = cls(
                tensor,
                [Certificate.from_dict(certificate) for certificate in values["certificates"]],
                NullspaceConfig.from_dict(values["config"]),
                values["round_index"],
                tensors.get("axes"),
                values.get("grid"),  # earlier versions did not write it
            )
            if noise.digest() != values["sha256"]:
                raise ValueError("the tensor is not the one that the JSON was written with")
            return noise
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"The noise in {pretrained_model_name_or_path} is damaged or its two files do not belong together: "
                f"{error}. Restore both files from one save, or synthesise the noise again."
            ) from error
