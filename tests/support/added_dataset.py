"""Evaluation datasets as another package would add them: two classes of the model under test, one with corruptions."""

from hf_nullspace.robustness import DatasetSpec, NamedClasses, register_dataset


SHADES = NamedClasses(("Light", "dark"))


register_dataset(
    DatasetSpec("shades", "Shades of grey", SHADES, "grey pictures, dark and light", own_classes_compete=True)
)


register_dataset(
    DatasetSpec("shades-c", "Shades-C", SHADES, "the same in fog", corruptions=("mist", "haze"), severities=(1, 2))
)


register_dataset(DatasetSpec("found", "Found", help="pictures in folders of any names"))
