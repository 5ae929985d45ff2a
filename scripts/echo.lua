-- Kind:   service, port 7 (echo)
-- Config: none
--
-- Sends back whatever arrives: the smallest script there is, and a good first
-- thing to ask when two nodes should see each other.
--
--   pilotctl connect PEER 7 --message hello

return {
  kind = "service",
  version = "1.0",
  description = "Sends back what arrives",
  port = 7,

  -- Called once for every stream. Many run at a time: while one waits in
  -- `read` or `write`, the others go on. When the function returns, the stream
  -- is closed after what was written.
  serve = function(stream, peer)
    while true do
      -- What has arrived, up to 128 KiB; nil when the peer has said all.
      local data = stream:read()
      if not data then
        return
      end
      -- Waits when the peer does not take any more, so nothing piles up here.
      -- Gives nil and a reason when the stream broke.
      if not stream:write(data) then
        return
      end
    end
  end,

  -- The same for datagrams would need an answer by datagram, which scripts do
  -- not send; so this service is for streams.
}
