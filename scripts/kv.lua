-- Kind:   service, port 2001
-- Config: shared     true: all peers see the same keys. false (as it is without
--                    this key): every node has keys of its own
--         read_only  tags of peers that may read and not write, as a list
--
-- A key-value service that a person can talk to, one command a line:
--
--   SET key value     -> OK
--   GET key           -> VALUE the value        or  NONE
--   DEL key           -> OK
--   KEYS [prefix]     -> KEYS 2, and then one key a line
--   QUIT              -> BYE, and the stream closes
--
-- What goes wrong is answered with ERR and a reason. Values are on disk when OK
-- comes, in the script's own store, which has a quota.

-- A longer key would not fit into the store with its prefix.
local LONGEST_KEY = 128

-- Where a peer's keys are in the store.
local function prefix_of(peer)
  if config.shared then
    return "all/"
  end
  -- The tunnel has proven the address: nobody reads another's keys.
  return peer.address .. "/"
end

local function may_write(peer)
  for _, tag in config.read_only or {} do
    if table.find(peer.tags, tag) then
      return false
    end
  end
  return true
end

-- Every command takes what follows it on the line and gives the answer.
local commands = {}

function commands.SET(peer, rest)
  local key, value = string.match(rest, "^(%S+) (.*)$")
  if not key then
    return "ERR usage: SET key value"
  end
  if #key > LONGEST_KEY then
    return `ERR a key has at most {LONGEST_KEY} bytes`
  end
  if not may_write(peer) then
    return "ERR you may only read"
  end
  -- Functions of the store give nil and a reason when they cannot.
  local ok, reason = store.put(prefix_of(peer) .. key, value)
  return if ok then "OK" else "ERR " .. reason
end

function commands.GET(peer, rest)
  local key = string.match(rest, "^(%S+)$")
  if not key then
    return "ERR usage: GET key"
  end
  local value, reason = store.get(prefix_of(peer) .. key)
  if reason then
    return "ERR " .. reason
  end
  return if value then "VALUE " .. value else "NONE"
end

function commands.DEL(peer, rest)
  local key = string.match(rest, "^(%S+)$")
  if not key then
    return "ERR usage: DEL key"
  end
  if not may_write(peer) then
    return "ERR you may only read"
  end
  local ok, reason = store.delete(prefix_of(peer) .. key)
  return if ok then "OK" else "ERR " .. reason
end

function commands.KEYS(peer, rest)
  local prefix = prefix_of(peer)
  local keys, reason = store.keys(prefix .. rest)
  if not keys then
    return "ERR " .. reason
  end
  local answer = { `KEYS {#keys}` }
  for _, key in keys do
    table.insert(answer, string.sub(key, #prefix + 1))
  end
  return table.concat(answer, "\n")
end

return {
  kind = "service",
  version = "1.0",
  description = "Keys and values, one command a line",
  port = 2001,
  config_schema = {
    type = "object",
    properties = {
      shared = { type = "boolean" },
      read_only = { type = "array", items = { type = "string" } },
    },
    additionalProperties = false,
  },

  serve = function(stream, peer)
    while true do
      -- A line without its end; nil at the end of the stream, or nil and a
      -- reason for a line that is longer than 64 KiB.
      local line, reason = stream:read_line()
      if not line then
        if reason then
          stream:write("ERR " .. reason .. "\n")
        end
        return
      end
      local name, rest = string.match(line, "^(%a+) ?(.*)$")
      local command = name and commands[string.upper(name)]
      if name and string.upper(name) == "QUIT" then
        stream:write("BYE\n")
        return
      end
      local answer = if command
        then command(peer, rest)
        else "ERR unknown command; there are SET, GET, DEL, KEYS and QUIT"
      if not stream:write(answer .. "\n") then
        return
      end
    end
  end,
}
