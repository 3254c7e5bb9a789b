"""A window that shows pictures, for `render_mode="human"`."""

from __future__ import annotations

import numpy as np

try:
    import pygame
except ImportError as error:
    raise ImportError('render_mode="human" needs pygame-ce: pip install "bilevel-envs[render]"') from error


class Window:
    """Shows RGB arrays at a fixed pace.

    Args:
      fps: pictures per second.
    """

    def __init__(self, fps: int) -> None:
        pygame.display.init()  # not pygame.init(), which also asks for a sound card
        self._fps, self._clock, self._surface = fps, pygame.time.Clock(), None

    def show(self, frame: np.ndarray) -> None:
        """Shows one picture, uint8 [height, width, 3]."""
        if self._surface is None:
            pygame.display.set_caption("bilevel-envs")
            self._surface = pygame.display.set_mode(frame.shape[1::-1])
        self._surface.blit(pygame.surfarray.make_surface(frame.swapaxes(0, 1)), (0, 0))
        pygame.event.pump()
        pygame.display.update()
        self._clock.tick(self._fps)

    def close(self) -> None:
        """Closes the window."""
        pygame.display.quit()
