"""Pictures of tables: pure functions that take what ``msdetr.analysis`` makes and return matplotlib Figures."""
