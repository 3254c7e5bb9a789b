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
        self._fps, self._clock = fps, pygame.time.Clock()

    def show(self, frame: np.ndarray) -> None:
        """Shows one picture, uint8 [height, width, 3]."""
        # pygame has a single window, which another environment may have closed or resized.
        surface = pygame.display.get_surface() if pygame.display.get_init() else None
        if surface is None or surface.get_size() != frame.shape[1::-1]:
            pygame.display.init()  # not pygame.init(), which also asks for a sound card
            pygame.display.set_caption("bilevel-envs")
            surface = pygame.display.set_mode(frame.shape[1::-1])
        surface.blit(pygame.surfarray.make_surface(frame.swapaxes(0, 1)), (0, 0))
        pygame.event.pump()
        pygame.display.update()
        self._clock.tick(self._fps)

    def close(self) -> None:
        """Closes the window."""
        pygame.display.quit()
