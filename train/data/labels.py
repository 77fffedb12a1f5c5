"""One label order for every dataset, and the maps into it: AffectNet's codes, the order of the paper's tables."""

CLASS_NAMES = ("Neutral", "Happy", "Sad", "Surprise", "Fear", "Disgust", "Anger")

CLASS_NAMES_8 = (*CLASS_NAMES, "Contempt")

# fer2013.csv and icml_face_data.csv: 0 Angry, 1 Disgust, 2 Fear, 3 Happy, 4 Sad, 5 Surprise, 6 Neutral
FER_CSV_CODES = (6, 5, 4, 1, 2, 3, 0)

# Folder names as found in public copies, in lower case. Never the folders' alphabetical position.
FOLDER_NAMES = {
    "neutral": 0,
    "happy": 1,
    "happiness": 1,
    "sad": 2,
    "sadness": 2,
    "surprise": 3,
    "surprised": 3,
    "fear": 4,
    "fearful": 4,
    "disgust": 5,
    "disgusted": 5,
    "anger": 6,
    "angry": 6,
}

# RAF-DB, basic: 1 Surprise, 2 Fear, 3 Disgust, 4 Happiness, 5 Sadness, 6 Anger, 7 Neutral
RAF_CODES = (3, 4, 5, 1, 2, 6, 0)

# fer2013new.csv's columns: neutral, happiness, surprise, sadness, anger, disgust, fear, contempt
FERPLUS_COLUMNS = (0, 1, 3, 2, 6, 5, 4, 7)

# The parts of a set of class folders, in lower case
TRAIN_NAMES = frozenset({"train", "training", "train_set"})
VALIDATION_NAMES = frozenset({"val", "valid", "validation", "dev", "val_set"})
TEST_NAMES = frozenset({"test", "testing", "test_set"})
PART_NAMES = TRAIN_NAMES | VALIDATION_NAMES | TEST_NAMES

# Folder names of expressions in any set, in lower case; what else people call them is asked about, not read
EXPRESSIONS = FOLDER_NAMES | {"contempt": 7, "contemptuous": 7}

ALIKE = {
    "joy": "Happy", "ha": "Happy", "smile": "Happy", "afraid": "Fear", "scared": "Fear", "af": "Fear", "fe": "Fear",
    "mad": "Anger", "an": "Anger", "di": "Disgust", "ne": "Neutral", "normal": "Neutral", "sa": "Sad", "su": "Surprise",
}  # fmt: skip
