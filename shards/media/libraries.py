"""PyAV and OpenCV, or one line about the extra that brings them."""

from conclugen.common.extras import needed_for

with needed_for("reading and writing video"):
    import av
    import cv2
    from av.filter import Graph
    from av.stream import Disposition

__all__ = ["Disposition", "Graph", "av", "cv2"]
