"""How CIFAR-FS and FC100 share out the 100 classes of CIFAR-100.

CIFAR-FS draws 64, 16 and 20 classes at random, so that related classes meet in different splits: maple trees are for
validation, oaks for training. FC100 keeps the superclasses of CIFAR-100, five classes each, whole: 12, 4 and 4 of them,
so that training and test have less in common.
"""

from lightning_meta.core.episode import Split

SUPERCLASSES = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
CLASSES = sorted(name for names in SUPERCLASSES.values() for name in names)

# fmt: off
CIFAR_FS_VAL = {
    "beaver", "beetle", "butterfly", "camel", "cattle", "crab", "crocodile", "flatfish", "lamp", "maple_tree",
    "motorcycle", "otter", "sea", "shark", "television", "tractor",
}
CIFAR_FS_TEST = {
    "baby", "bed", "bicycle", "chimpanzee", "fox", "leopard", "man", "pickup_truck", "plain", "poppy", "rocket", "rose",
    "snail", "sweet_pepper", "table", "telephone", "wardrobe", "whale", "woman", "worm",
}
# fmt: on
FC100_VAL = {"large_carnivores", "large_omnivores_and_herbivores", "non-insect_invertebrates", "small_mammals"}
FC100_TEST = {"aquatic_mammals", "insects", "medium_mammals", "people"}


def cifar_fs_split() -> dict[Split, list[str]]:
    """The classes of each split of CIFAR-FS: 64, 16 and 20."""
    splits: dict[Split, list[str]] = {"train": [], "val": [], "test": []}
    for name in CLASSES:
        splits["val" if name in CIFAR_FS_VAL else "test" if name in CIFAR_FS_TEST else "train"].append(name)
    return splits


def fc100_split() -> dict[Split, list[str]]:
    """The classes of each split of FC100: 60, 20 and 20."""
    splits: dict[Split, list[str]] = {"train": [], "val": [], "test": []}
    for superclass, names in SUPERCLASSES.items():
        splits["val" if superclass in FC100_VAL else "test" if superclass in FC100_TEST else "train"].extend(names)
    return splits
