"""The split of Omniglot's 1,623 characters: 1,028 for training, 172 for validation, 423 for testing.

The split in 1,200 and 423 characters is that of Vinyals et al.: "Matching Networks for One Shot Learning" (2016),
arXiv:1606.04080. Snell, Swersky, Zemel: "Prototypical Networks for Few-shot Learning" (2017), arXiv:1703.05175,
published it as lists, with the validation set, in their code (github.com/jakesnell/prototypical-networks). Those lists
follow a rule, from which they are rebuilt here: with the alphabets in the order below, the first 1,200 characters are
for training and validation and the others for testing; five whole alphabets are for validation. The cut falls within
Gurmukhi: its last four characters are in the test set, all the others in the training set.
"""

from lightning_meta.core.episode import Split

# part of the data set -> alphabet -> number of characters
ALPHABETS = {
    "images_background": {
        "Alphabet_of_the_Magi": 20,
        "Anglo-Saxon_Futhorc": 29,
        "Arcadian": 26,
        "Armenian": 41,
        "Asomtavruli_(Georgian)": 40,
        "Balinese": 24,
        "Bengali": 46,
        "Blackfoot_(Canadian_Aboriginal_Syllabics)": 14,
        "Braille": 26,
        "Burmese_(Myanmar)": 34,
        "Cyrillic": 33,
        "Early_Aramaic": 22,
        "Futurama": 26,
        "Grantha": 43,
        "Greek": 24,
        "Gujarati": 48,
        "Hebrew": 22,
        "Inuktitut_(Canadian_Aboriginal_Syllabics)": 16,
        "Japanese_(hiragana)": 52,
        "Japanese_(katakana)": 47,
        "Korean": 40,
        "Latin": 26,
        "Malay_(Jawi_-_Arabic)": 40,
        "Mkhedruli_(Georgian)": 41,
        "N_Ko": 33,
        "Ojibwe_(Canadian_Aboriginal_Syllabics)": 14,
        "Sanskrit": 42,
        "Syriac_(Estrangelo)": 23,
        "Tagalog": 17,
        "Tifinagh": 55,
    },
    "images_evaluation": {
        "Angelic": 20,
        "Atemayar_Qelisayer": 26,
        "Atlantean": 26,
        "Aurek-Besh": 26,
        "Avesta": 26,
        "Ge_ez": 26,
        "Glagolitic": 45,
        "Gurmukhi": 45,
        "Kannada": 41,
        "Keble": 26,
        "Malayalam": 47,
        "Manipuri": 40,
        "Mongolian": 30,
        "Old_Church_Slavonic_(Cyrillic)": 45,
        "Oriya": 46,
        "Sylheti": 28,
        "Syriac_(Serto)": 23,
        "Tengwar": 25,
        "Tibetan": 42,
        "ULOG": 26,
    },
}
VALIDATION = {"Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"}
TRAIN_AND_VALIDATION = 1200


def vinyals_split() -> dict[Split, list[str]]:
    """The characters of each split as paths in the data set, such as `images_background/Greek/character01`."""
    characters = [
        (part, alphabet, f"character{number:02d}")
        for part, alphabets in ALPHABETS.items()
        for alphabet, size in alphabets.items()
        for number in range(1, size + 1)
    ]
    splits: dict[Split, list[str]] = {"train": [], "val": [], "test": []}
    for position, (part, alphabet, character) in enumerate(characters):
        split: Split = "test" if position >= TRAIN_AND_VALIDATION else "val" if alphabet in VALIDATION else "train"
        splits[split].append(f"{part}/{alphabet}/{character}")
    return splits
