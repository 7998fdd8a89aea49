"""What the repositories of all engines are written with: models' configurations, their parameters and files."""
