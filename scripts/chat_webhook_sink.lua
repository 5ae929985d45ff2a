-- Kind:   event sink
-- Config: url     where to post to; needed. Slack, Mattermost, Discord (its
--                 address ends in /slack) and others take {"text": ...}
--         events  names of events that are told; a name that ends with * stands
--                 for all that begin so. All without it
--         prefix  text before each message, for the name of a node or a channel
-- Grant:  "http:HOST" with the host of `url`
--
-- Tells people in a chat what happens on a node. Events wait on disk until this
-- script says that they have arrived, so nothing is lost while the chat cannot
-- be reached.

-- Lines in one message; chats cut off long ones.
local MOST_LINES = 20

local function wanted(name)
  if not config.events then
    return true
  end
  for _, pattern in config.events do
    if pattern == name then
      return true
    end
    if string.sub(pattern, -1) == "*" and string.sub(name, 1, #pattern - 1) == string.sub(pattern, 1, -2) then
      return true
    end
  end
  return false
end

-- One event as one line for people.
local function line_of(event)
  local details = {}
  for key, value in event.data or {} do
    local text = if type(value) == "table" then json.encode(value) else tostring(value)
    table.insert(details, `{key}={text}`)
  end
  table.sort(details)
  return `{event.timestamp} {event.event} {table.concat(details, " ")}`
end

return {
  kind = "sink",
  version = "1.0",
  description = "Tells events in a chat",
  max_batch = MOST_LINES,
  config_schema = {
    type = "object",
    properties = {
      url = { type = "string", pattern = "^https?://" },
      events = { type = "array", items = { type = "string" } },
      prefix = { type = "string" },
    },
    required = { "url" },
    additionalProperties = false,
  },

  -- Gets a list of events, oldest first, and says what became of them:
  --   true                         they have arrived
  --   { retry_after = seconds }    again later (true: when the host thinks fit)
  --   { reject = true }            they never will; they go to the dead letters
  -- An error counts as "again later".
  deliver = function(events)
    local lines = {}
    for _, event in events do
      if wanted(event.event) then
        table.insert(lines, line_of(event))
      end
    end
    if #lines == 0 then
      return true
    end

    local text = (config.prefix or "") .. table.concat(lines, "\n")
    local response, reason = http.post(config.url, json.encode({ text = text }), {
      headers = { ["content-type"] = "application/json" },
      timeout = 20,
    })
    if not response then
      return { retry_after = true, reason = reason }
    end
    if response.status >= 200 and response.status < 300 then
      return true
    end
    local problem = `the chat answered {response.status}`
    if response.status == 429 or response.status >= 500 then
      -- Retry-After is a number of seconds, or a date, which we do not read.
      local after = tonumber(response.headers["retry-after"])
      return { retry_after = after or true, reason = problem }
    end
    -- Anything else (wrong address, no rights, not taken) stays as it is.
    return { reject = true, reason = problem }
  end,
}
