-- Kind:   join rule
-- Config: joins    how many may join in that time, 10 without it
--         seconds  the time, 60 without it
--         per      "source" (the IP address it comes from, as it is without
--                  this key), "owner", "node" or "network"
--
-- Lets so many join a network in a time, counted per IP address, owner or node.
-- The counts are in memory: a rule runs in one machine, so all requests see the
-- same ones, and they begin anew when the registry restarts.

-- Keys that are remembered; beyond it those that have run out are forgotten,
-- and if there are none, new ones are refused: a flood of addresses must not
-- eat the memory, nor make us forget who had too many.
local MOST_KEYS = 10000

local joined = {} -- key -> times in milliseconds, oldest first
local keys = 0

-- Forgets what lies before `since`.
local function forget(since)
  for key, times in joined do
    if times[#times] <= since then
      joined[key] = nil
      keys -= 1
    end
  end
end

return {
  kind = "rule",
  version = "1.0",
  description = "So many joins in a time",
  config_schema = {
    type = "object",
    properties = {
      joins = { type = "integer", minimum = 1, maximum = 10000 },
      seconds = { type = "number", exclusiveMinimum = 0 },
      per = { enum = { "source", "owner", "node", "network" } },
    },
    additionalProperties = false,
  },

  -- Returns true, or false and a reason that the node's owner sees. If it
  -- raises an error, or takes too long, nobody joins.
  validate = function(request)
    local most = config.joins or 10
    local seconds = config.seconds or 60
    local per = config.per or "source"
    local key = `{request.network} {request[per]}`
    local since = request.at_ms - seconds * 1000

    local times = joined[key]
    if not times then
      if keys >= MOST_KEYS then
        forget(since)
      end
      if keys >= MOST_KEYS then
        return false, "too many join at the moment; try again later"
      end
      times = {}
      keys += 1
    end
    while times[1] and times[1] <= since do
      table.remove(times, 1)
    end
    if #times >= most then
      local wait = math.ceil((times[1] - since) / 1000)
      joined[key] = times
      return false, `more than {most} joins in {seconds} s; try again in {wait} s`
    end
    table.insert(times, request.at_ms)
    joined[key] = times
    return true
  end,
}
