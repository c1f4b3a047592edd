"""The pipeline of latent diffusion models on ImageNet classes or without any condition (Rombach et al. 2022).

diffusers has none that takes classes. A class is a learned vector, the only token that cross-attention reads;
the last vector of the table stands for no class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.compat import ensure_torchvision, quiet_imports

ensure_torchvision()
with quiet_imports():
    # Not from the top: there a type checker finds the placeholders for a missing torch.
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.models.modeling_utils import ModelMixin
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
    from diffusers.utils.torch_utils import randn_tensor


class ClassEmbedder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A learned vector per class."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, num_classes: int = 1001, width: int = 512) -> None:
        """Make the table.

        Args:
            num_classes: vectors, that of no class (the last) included.
            width: of a vector.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.embedding = nn.Embedding(num_classes, width)

    def forward(self, classes: Tensor) -> Tensor:
        """Look up classes: int64 [n] -> [n, 1, width]."""
        looked_up: Tensor = self.embedding(classes)[:, None]
        return looked_up


class LatentDiffusionPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Draws pictures of classes, or of what an unconditional model was trained on."""

    model_cpu_offload_seq: Any = "class_embedder->unet->vae"
    _optional_components: Any = ["class_embedder"]  # noqa: RUF012 (the library's own declaration)

    def __init__(
        self, vae: Any, unet: Any, scheduler: Any, class_embedder: ClassEmbedder | None = None
    ) -> None:
        """Put the pieces together.

        Args:
            vae: a VQModel; its config's `scaling_factor` divides the latents.
            unet: a UNet2DConditionModel beside a `class_embedder`, else a UNet2DModel.
            scheduler: a DDIMScheduler.
            class_embedder: the table of classes, or None for an unconditional model.
        """
        super().__init__()
        parts = {"vae": vae, "unet": unet, "scheduler": scheduler, "class_embedder": class_embedder}
        self.register_modules(**parts)  # type: ignore[no-untyped-call]
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int] | None = None,
        batch_size: int = 1,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 3.0,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Draw one batch.

        Args:
            class_labels: a class per picture; None for an unconditional model.
            batch_size: pictures, where there are no classes.
            height: of a picture in pixels; by default the model's.
            width: likewise.
            num_inference_steps: of the scheduler.
            guidance_scale: classifier-free guidance; 1 or less, or a model without classes, takes none.
            eta: share of DDIM's noise that is drawn anew at each step, 0 to 1.
            generator: one, or one per picture.
            latents: the noise to start from, [n, channels, height, width]; drawn when None.
            output_type: `latent`, `pt` (images in 0..1), `np` or `pil`.

        Raises:
            ValueError: classes for a model without, or none or unknown ones for a model with them.
        """
        conditions = self._conditions(class_labels, guidance_scale > 1)
        n = batch_size if class_labels is None else len(class_labels)
        side = self.unet.config.sample_size * self.vae_scale_factor
        shape = (
            n,
            self.unet.config.in_channels,
            *((s or side) // self.vae_scale_factor for s in (height, width)),
        )
        if latents is None:
            latents = randn_tensor(shape, generator=generator, dtype=self.unet.dtype)
        device = self._execution_device
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        latents = latents.to(device, self.unet.dtype) * self.scheduler.init_noise_sigma
        for t in self.progress_bar(self.scheduler.timesteps):
            prediction = self._predict(
                self.scheduler.scale_model_input(latents, t), t, conditions, guidance_scale
            )
            latents = self.scheduler.step(prediction, t, latents, eta=eta, generator=generator).prev_sample
        return ImagePipelineOutput(images=self._finish(latents, output_type))

    def _conditions(self, class_labels: Sequence[int] | None, guided: bool) -> Tensor | None:
        """What cross-attention reads: [n, 1, width], or [2n, 1, width] with those of no class first."""
        if self.class_embedder is None:
            if class_labels is not None:
                raise ValueError("an unconditional model takes no classes")
            return None
        none = self.class_embedder.config.num_classes - 1
        if class_labels is None or not all(0 <= label < none for label in class_labels):
            raise ValueError(f"classes are 0 to {none - 1}, not {class_labels}")
        labels = torch.tensor(list(class_labels), device=self._execution_device)
        embedded: Tensor = self.class_embedder(labels)
        if not guided:
            return embedded
        return torch.cat([self.class_embedder(torch.full_like(labels, none)), embedded])

    def _predict(
        self, latents: Tensor, t: Tensor, conditions: Tensor | None, guidance_scale: float
    ) -> Tensor:
        """The predicted noise at one step, guided where there are two conditions per picture."""
        if conditions is None:
            plain: Tensor = self.unet(latents, t).sample
            return plain
        doubled = len(conditions) == 2 * len(latents)
        given = torch.cat([latents, latents]) if doubled else latents
        predicted: Tensor = self.unet(given, t, encoder_hidden_states=conditions).sample
        if not doubled:
            return predicted
        without, with_class = predicted.chunk(2)
        return without + guidance_scale * (with_class - without)

    def _finish(self, latents: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return latents
        decoded = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        images = (decoded / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        arrays = images.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type != "pil":
            return arrays
        return self.numpy_to_pil(arrays)  # type: ignore[no-untyped-call]
