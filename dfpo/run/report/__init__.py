"""``dfpo report``: runs as one HTML page that opens from disk, without network.

``data`` gathers what the page shows, ``page`` puts it beside script and style, ``assets/`` has
these. uPlot, which draws the curves, is kept there as published (MIT).
"""
