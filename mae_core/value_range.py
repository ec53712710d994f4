"""Old names."""

from mae_core.measurements import RangeSpec as RangeSpec
from mae_core.measurements import ValueRange as ValueRange
from mae_core.measurements import as_value_range as as_value_range
from mae_core.measurements import find_value_range as find_value_range
from mae_core.measurements import range_in_words as range_in_words
from mae_core.measurements import to_levels as to_levels
