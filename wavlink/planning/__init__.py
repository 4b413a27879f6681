"""Plans: what a training costs, before anything is downloaded, trained or written."""
