-- Kind:   service, port 2002
-- Config: name         what the agent calls itself; "pilot-agent" without it
--         description  one line on what it is for
--         trusted_only true: peers that are not trusted get an error
--
-- An agent's endpoint: JSON-RPC 2.0 (jsonrpc.org/specification), one message a
-- line. Requests, notifications and batches work. To make it your own agent,
-- add functions to `methods`.
--
--   -> {"jsonrpc":"2.0","id":1,"method":"agent.describe"}
--   <- {"id":1,"jsonrpc":"2.0","result":{"name":"pilot-agent",...}}

-- A method raises one of these to answer with an error; the numbers are those
-- of the specification.
local function rpc_error(code, message)
  return { rpc = true, code = code, message = message }
end

local methods = {}

-- What this agent is, and what it can do.
methods["agent.describe"] = function(_, peer)
  local names = json.array()
  for name in methods do
    table.insert(names, name)
  end
  table.sort(names)
  return {
    name = config.name or "pilot-agent",
    description = config.description,
    methods = names,
    -- Who is asking, as the tunnel has proven it.
    you = peer.address,
  }
end

-- Gives back its parameters.
methods["echo"] = function(params)
  return params
end

methods["time.now"] = function()
  return time.date().iso
end

-- Adds up a list of numbers: {"params":[1,2,3]}.
methods["sum"] = function(params)
  local sum = 0
  for _, number in params or {} do
    if type(number) ~= "number" then
      error(rpc_error(-32602, "sum takes a list of numbers"))
    end
    sum += number
  end
  return sum
end

-- The answer to one message; nil for a notification.
local function answer_to(message, peer)
  if type(message) ~= "table" or message.jsonrpc ~= "2.0" or type(message.method) ~= "string" then
    return { jsonrpc = "2.0", id = json.null, error = { code = -32600, message = "Invalid Request" } }
  end
  local answer = { jsonrpc = "2.0", id = message.id }
  local method = methods[message.method]
  if config.trusted_only and not peer.trusted then
    answer.error = { code = -32001, message = "only trusted peers may call" }
  elseif not method then
    answer.error = { code = -32601, message = "Method not found: " .. message.method }
  else
    local ok, result = pcall(method, message.params, peer)
    if ok then
      -- A result must be there, also when there is nothing to say.
      answer.result = if result == nil then json.null else result
    elseif type(result) == "table" and result.rpc then
      answer.error = { code = result.code, message = result.message }
    else
      -- The details are for our log, not for the peer.
      log.error(message.method, result)
      answer.error = { code = -32603, message = "Internal error" }
    end
  end
  -- A message without an id wants no answer (a null id counts as none).
  return if message.id == nil then nil else answer
end

-- The answer to one line, as text; nil for none.
local function answer_to_line(line, peer)
  local ok, message = pcall(json.decode, line)
  if not ok then
    return json.encode({ jsonrpc = "2.0", id = json.null, error = { code = -32700, message = "Parse error" } })
  end
  -- A batch is a list; its answers come as a list, without notifications.
  if type(message) == "table" and message[1] ~= nil then
    local answers = json.array()
    for _, one in message do
      table.insert(answers, answer_to(one, peer))
    end
    return if #answers > 0 then json.encode(answers) else nil
  end
  local answer = answer_to(message, peer)
  return answer and json.encode(answer)
end

return {
  kind = "service",
  version = "1.0",
  description = "An agent that answers JSON-RPC 2.0, one message a line",
  port = 2002,
  config_schema = {
    type = "object",
    properties = {
      name = { type = "string" },
      description = { type = "string" },
      trusted_only = { type = "boolean" },
    },
    additionalProperties = false,
  },

  serve = function(stream, peer)
    while true do
      local line, reason = stream:read_line()
      if not line then
        if reason then
          log.warn("stream of", peer.address, "ended:", reason)
        end
        return
      end
      if line ~= "" then
        local answer = answer_to_line(line, peer)
        if answer and not stream:write(answer .. "\n") then
          return
        end
      end
    end
  end,
}
