"""ImageNet and the datasets that test robustness on its classes."""

from .class_lists import ImageNetClasses
from .dataset_spec import DatasetSpec, register_dataset
from .imagenet import IMAGENET_C_CORRUPTIONS, IMAGENET_C_SEVERITIES, imagenet_a_indices, imagenet_r_indices


CROPPED = "resize_256_crop_224"
AS_PUBLISHED = "none"
IMAGENET = register_dataset(
    DatasetSpec(
        "imagenet",
        "ImageNet validation",
        ImageNetClasses(),
        "the validation images of ILSVRC 2012",
        CROPPED,
        may_be_listed=True,
    )
)


register_dataset(
    DatasetSpec(
        "imagenet-a",
        "ImageNet-A",
        ImageNetClasses(imagenet_a_indices),
        "natural adversarial examples of 200 classes, which alone compete",
        CROPPED,
        own_classes_compete=True,
    )
)


register_dataset(
    DatasetSpec(
        "imagenet-c",
        "ImageNet-C",
        ImageNetClasses(),
        "fifteen common corruptions at five severities, as published",
        AS_PUBLISHED,
        corruptions=IMAGENET_C_CORRUPTIONS,
        severities=IMAGENET_C_SEVERITIES,
    )
)


register_dataset(
    DatasetSpec(
        "imagenet-r",
        "ImageNet-R",
        ImageNetClasses(imagenet_r_indices),
        "renditions of 200 classes, which alone compete",
        CROPPED,
        own_classes_compete=True,
    )
)


register_dataset(
    DatasetSpec("imagenet-sketch", "ImageNet-Sketch", ImageNetClasses(), "black and white sketches", CROPPED)
)


register_dataset(
    DatasetSpec("imagenet-stylized", "Stylized-ImageNet", ImageNetClasses(), "painted over by styles", AS_PUBLISHED)
)


register_dataset(
    DatasetSpec("imagenet-v2", "ImageNet-V2", ImageNetClasses(numbered=True), "new images of the old classes", CROPPED)
)


register_dataset(
    DatasetSpec(
        "damagenet",
        "DamageNet",
        ImageNetClasses(),
        "transferable adversarial examples",
        AS_PUBLISHED,
        may_be_listed=True,
    )
)
