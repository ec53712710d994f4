"""Old names."""

from mae_core.images import open_picture as open_picture
from mae_core.images import read_raster as read_raster
