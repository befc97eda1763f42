"""Pictures of tables: pure functions that take what ``msdetr.analysis`` makes and return matplotlib Figures.

candidates: Figures 1 and 2 of the paper. runs: learning curves and comparisons. matching: the microscope. stability: flip
rates and the animation. explorer: sliders. text: the same for a terminal. ``inspect``: all of it for one image of a run.
"""
