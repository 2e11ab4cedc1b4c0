-- Increments a counter of sessions s0 to s(N-1), one after the other: `wrk -s counters.lua URL -- N`.
-- The requests are made once, so that they cost nothing while wrk runs.

local requests = {}
local at = 0

function init(args)
  local n = tonumber(args[1])
  for i = 0, n - 1 do
    requests[i] = wrk.format("POST", "/sessions/s" .. i .. "/counters/n")
  end
end

function request()
  at = (at + 1) % (#requests + 1)
  return requests[at]
end
