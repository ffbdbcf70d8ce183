"""The pictures that the experiments leave behind, drawn without a display."""
