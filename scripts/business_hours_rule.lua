-- Kind:   join rule
-- Config: days            days of the week, 1 is Sunday; Monday to Friday
--                         ({ 2, 3, 4, 5, 6 }) without it
--         from, to        "09:00" and "17:00" without them. `to` before `from`
--                         means over midnight; the day is that of the beginning
--         offset_minutes  minutes from UTC, 60 for Central European (winter)
--                         time; 0 without it
--         always          tags of nodes that may join at any time
--         until_closing   true: the membership ends when the hours do
--
-- Nodes join a network in business hours only.

local DAY = 24 * 60

-- "09:30" as minutes of the day.
local function minutes(text)
  local hour, minute = string.match(text, "^(%d+):(%d+)$")
  return tonumber(hour) * 60 + tonumber(minute)
end

return {
  kind = "rule",
  version = "1.0",
  description = "Joins in business hours only",
  config_schema = {
    type = "object",
    properties = {
      days = { type = "array", items = { type = "integer", minimum = 1, maximum = 7 } },
      from = { type = "string", pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$" },
      to = { type = "string", pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$" },
      offset_minutes = { type = "integer", minimum = -1440, maximum = 1440 },
      always = { type = "array", items = { type = "string" } },
      until_closing = { type = "boolean" },
    },
    additionalProperties = false,
  },

  validate = function(request)
    for _, tag in config.always or {} do
      if table.find(request.tags, tag) then
        return true
      end
    end

    local days = config.days or { 2, 3, 4, 5, 6 }
    local from, to = config.from or "09:00", config.to or "17:00"
    local opens, closes = minutes(from), minutes(to)
    if closes <= opens then
      closes += DAY
    end

    -- The registry says when it was asked; `time.now()` would do as well.
    local date = time.date(request.at_ms / 1000, config.offset_minutes or 0)
    local now = date.hour * 60 + date.min
    -- Over midnight, the hours of yesterday may still go on.
    local yesterday = (date.wday + 5) % 7 + 1
    local left
    if table.find(days, date.wday) and now >= opens and now < closes then
      left = closes - now
    elseif table.find(days, yesterday) and now + DAY < closes then
      left = closes - now - DAY
    else
      return false, `nodes join from {from} to {to}; for them it is {date.iso}`
    end

    if config.until_closing then
      -- To the minute: what is over of this one does not count.
      local ends = request.at_ms + left * 60000 - date.sec * 1000
      return { allow = true, expires_at_ms = math.floor(ends) }
    end
    return true
  end,
}
