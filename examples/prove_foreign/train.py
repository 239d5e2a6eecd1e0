"""A script that knows nothing of kingpost: scikit-learn's MLP on its handwritten digits.

Try a change to it, from this folder:
    kingpost prove --command "python train.py --seed {seed} {patch}" --arm wider "--width 64" --metric accuracy
"""

import argparse

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--width", type=int, default=4)
parser.add_argument("--decay", type=float, default=1e-4)
parser.add_argument("--rounds", type=int, default=30)
args = parser.parse_args()

x, y = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(x / 16, y, test_size=0.3, random_state=0)
model = MLPClassifier((args.width,), alpha=args.decay, random_state=args.seed)
for _ in range(args.rounds):
    model.partial_fit(x_train, y_train, classes=range(10))
print(f"accuracy={model.score(x_test, y_test):.4f}")
