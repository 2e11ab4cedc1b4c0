-- Reads sessions s0 to s(N-1) one after the other: `wrk -s sessions.lua URL -- N`.
-- The requests are made once, so that they cost nothing while wrk runs.

local requests = {}
local at = 0

function init(args)
  local n = tonumber(args[1])
  for i = 0, n - 1 do
    local id = "s" .. i
    requests[i] = wrk.format("GET", "/sessions/" .. id, { ["x-session"] = id })
  end
end

function request()
  at = (at + 1) % (#requests + 1)
  return requests[at]
end
