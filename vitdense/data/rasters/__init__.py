"""Rasters of any number of channels, larger than memory: which files hold them, and what their values mean."""

from vitdense.data.rasters.opening import open_raster as open_raster
from vitdense.data.rasters.options import RasterConfig as RasterConfig
from vitdense.data.rasters.raster import Area as Area
from vitdense.data.rasters.raster import Raster as Raster
from vitdense.data.rasters.raster_folder import RasterFolderConfig as RasterFolderConfig
from vitdense.data.rasters.values import Source as Source
