"""The published k-means in plain loops, for comparison."""

import numpy as np


def slow_kmeans(pool: np.ndarray, start: np.ndarray, iterations: int = 100) -> tuple[np.ndarray, list[int]]:
    """Assign by cosine, move to the plain mean (zero when empty), stop at a summed squared shift of at most 1e-4."""
    centroids = start.copy()
    labels: list[int] = []
    for _ in range(iterations):
        labels = []
        for row in pool:
            cosines = []
            for c in centroids:
                norms = np.linalg.norm(row) * np.linalg.norm(c)
                cosines.append(float(row @ c / norms) if norms > 0 else 0.0)
            labels.append(int(np.argmax(cosines)))
        moved = np.zeros_like(centroids)
        for k in range(len(centroids)):
            members = [row for row, label in zip(pool, labels, strict=True) if label == k]
            if members:
                moved[k] = np.mean(members, axis=0)
        shift = ((moved - centroids) ** 2).sum()
        centroids = moved
        if shift <= 1e-4:
            break
    return centroids, labels
