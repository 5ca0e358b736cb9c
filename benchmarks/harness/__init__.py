"""What every benchmark needs: timing, targets, pages and plots."""
