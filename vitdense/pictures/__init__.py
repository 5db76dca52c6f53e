"""What a person looks at, and what tools write: masks, boxes and depth over pictures, panels, sheets, files."""

from vitdense.pictures.boxes import draw_likely as draw_likely
from vitdense.pictures.boxes import draw_things as draw_things
from vitdense.pictures.boxes import things_panel as things_panel
from vitdense.pictures.charts import Panel as Panel
from vitdense.pictures.charts import chart_sheet as chart_sheet
from vitdense.pictures.depth import colour_depth as colour_depth
from vitdense.pictures.depth import depth_panel as depth_panel
from vitdense.pictures.depth import depth_range as depth_range
from vitdense.pictures.depth import save_depth_png as save_depth_png
from vitdense.pictures.labels import draw_classes as draw_classes
from vitdense.pictures.masks import make_palette as make_palette
from vitdense.pictures.masks import outlines as outlines
from vitdense.pictures.masks import overlay as overlay
from vitdense.pictures.masks import panel as panel
from vitdense.pictures.masks import save_palette_png as save_palette_png
from vitdense.pictures.matrices import confusion_matrix as confusion_matrix
from vitdense.pictures.objects import draw_objects as draw_objects
from vitdense.pictures.sheets import contact_sheet as contact_sheet
