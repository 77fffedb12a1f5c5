"""One label order for every dataset, and the maps into it: AffectNet's codes, the order of the paper's tables."""

CLASS_NAMES = ("Neutral", "Happy", "Sad", "Surprise", "Fear", "Disgust", "Anger")

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
