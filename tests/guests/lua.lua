-- Sorts, formats, uses closures, reads stdin: the usual work of an interpreter.
local squares = {}
for index = 1, 100000 do
  squares[#squares + 1] = index * index % 99991
end
table.sort(squares, function(left, right) return left > right end)
print(_VERSION, #squares, squares[1], string.format("%.5f", math.pi), os.getenv("GREETING"))
local words = {}
for word in io.read("a"):gmatch("%a+") do
  words[#words + 1] = word:upper()
end
print(table.concat(words, "-"))
os.exit(#arg + 3)
