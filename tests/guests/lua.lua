-- Sorts, formats, closes over, reads stdin: a day's work of an interpreter.
local squares = {}
for index = 1, 100000 do
  squares[#squares + 1] = index * index % 99991
end
-- Lua's own sort may ask for the process's CPU time, which a component made by the preview 1 adapter
-- does not have.
local function sort(list, low, high)
  if low >= high then return end
  local pivot, left, right = list[(low + high) // 2], low, high
  while left <= right do
    while list[left] > pivot do left = left + 1 end
    while list[right] < pivot do right = right - 1 end
    if left <= right then
      list[left], list[right] = list[right], list[left]
      left, right = left + 1, right - 1
    end
  end
  sort(list, low, right)
  sort(list, left, high)
end
sort(squares, 1, #squares)
print(_VERSION, #squares, squares[1], string.format("%.5f", math.pi), os.getenv("GREETING"))
local words = {}
for word in io.read("a"):gmatch("%a+") do
  words[#words + 1] = word:upper()
end
print(table.concat(words, "-"))
os.exit(#arg + 3)
