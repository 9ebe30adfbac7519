// Runs an artifact without Python: the shared library that `tvmc compile -o model.so` writes.
//
//   run_artifact model.so [input.bin ...]
//
// Inputs are raw arrays in the model's order, as numpy's `tofile` writes them; an input without a file is filled with ones.
// Each output is written to output_0.bin, output_1.bin, … in the working folder, as numpy's `fromfile` reads it. What the model
// takes is said by the symbol `reparam_manifest` of the library. Of a model that was compiled for several batches, it runs the
// smallest. How to build: docs/tvmc.md. CPU only.

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

constexpr DLDevice kCpu{kDLCPU, 0};
constexpr int kPooledAllocator = 2;  // tvm/runtime/memory/memory_manager.h
constexpr size_t kAlignment = 64;    // what kernels may assume of a tensor's data
constexpr size_t kDigest = 64;       // digits between the mark and the manifest, each on a line of its own
constexpr size_t kPage = 4096;       // weights begin at a page behind the library, each at a multiple of kAlignment

struct AlignedAllocator {
  void AllocData(DLTensor* tensor) {
    size_t bytes = std::max<size_t>(ffi::GetDataSize(*tensor), 1);
    tensor->data = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    if (tensor->data == nullptr) throw std::runtime_error("out of memory for " + std::to_string(bytes) + " bytes");
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

// Memory that somebody else holds.
struct Held {
  void* data;
  void AllocData(DLTensor* tensor) { tensor->data = data; }
  void FreeData(DLTensor*) {}
};

size_t SizeInBytes(const ffi::Tensor& tensor) {
  return ffi::GetDataSize(static_cast<size_t>(tensor.numel()), tensor.dtype());
}

// The JSON object that the library holds about itself.
ffi::json::Object ReadManifest(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL);
  if (library == nullptr) throw std::runtime_error(std::string("cannot load the library: ") + dlerror());
  const char* text = static_cast<const char*>(dlsym(library, "reparam_manifest"));
  if (text == nullptr) throw std::runtime_error(path + " holds no manifest; write it with `tvmc compile -o model.so`");
  const char* digest = std::strchr(text, '\n') + 1;
  return ffi::json::Parse(ffi::String(digest + kDigest + 1)).cast<ffi::json::Object>();
}

std::vector<int64_t> ShapeOf(const ffi::json::Object& spec) {
  std::vector<int64_t> sizes;
  for (const ffi::Any& size : spec["shape"].cast<ffi::json::Array>()) sizes.push_back(size.cast<int64_t>());
  return sizes;
}

template <typename Number>
void FillWithOnes(const ffi::Tensor& tensor) {
  Number* data = static_cast<Number*>(tensor.data_ptr());
  std::fill(data, data + tensor.numel(), Number(1));
}

DLDataType TypeOf(const ffi::json::Object& spec) {
  return ffi::StringToDLDataType(spec["dtype"].cast<ffi::String>());
}

// The weights behind the library, mapped into memory as they are; the last eight bytes of the file say where the library ends.
// A variant names those that it reads by their places.
std::vector<ffi::Tensor> Weights(const std::string& path, const ffi::json::Object& manifest, const ffi::json::Object& variant) {
  std::vector<ffi::Tensor> weights;
  ffi::json::Array described = manifest["weights"].cast<ffi::json::Array>();
  if (described.empty()) return weights;
  int file = open(path.c_str(), O_RDONLY);
  struct stat about;
  if (file < 0 || fstat(file, &about) != 0) throw std::runtime_error(path + ": cannot be read");
  size_t size = static_cast<size_t>(about.st_size);
  void* mapped = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  if (mapped == MAP_FAILED) throw std::runtime_error(path + ": cannot be mapped into memory");
  char* content = static_cast<char*>(mapped);
  uint64_t library;
  std::memcpy(&library, content + size - sizeof(library), sizeof(library));
  size_t place = (library + kPage - 1) / kPage * kPage;
  for (const ffi::Any& value : described) {
    ffi::json::Object spec = value.cast<ffi::json::Object>();
    std::vector<int64_t> shape = ShapeOf(spec);
    ffi::ShapeView sizes(shape.data(), shape.size());
    weights.push_back(ffi::Tensor::FromNDAlloc(Held{content + place}, sizes, TypeOf(spec), kCpu));
    place += (SizeInBytes(weights.back()) + kAlignment - 1) / kAlignment * kAlignment;
  }
  std::vector<ffi::Tensor> read;
  for (const ffi::Any& index : variant["weights"].cast<ffi::json::Array>()) {
    read.push_back(weights[static_cast<size_t>(index.cast<int64_t>())]);
  }
  return read;
}

void Fill(const ffi::Tensor& tensor) {
  DLDataType type = tensor.dtype();
  if (type.code == kDLFloat && type.bits == 32) return FillWithOnes<float>(tensor);
  if (type.code == kDLFloat && type.bits == 64) return FillWithOnes<double>(tensor);
  if (type.code == kDLInt && type.bits == 64) return FillWithOnes<int64_t>(tensor);
  if (type.code == kDLInt && type.bits == 32) return FillWithOnes<int32_t>(tensor);
  std::memset(tensor.data_ptr(), 0, SizeInBytes(tensor));
}

void Read(const std::string& path, const ffi::Tensor& tensor, const std::string& name) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error(path + ": cannot be read");
  size_t found = static_cast<size_t>(file.tellg()), expected = SizeInBytes(tensor);
  if (found != expected) {
    throw std::runtime_error(path + ": found " + std::to_string(found) + " bytes; " + name + " takes " +
                             std::to_string(expected));
  }
  file.seekg(0);
  file.read(static_cast<char*>(tensor.data_ptr()), static_cast<std::streamsize>(expected));
}

void Collect(const ffi::Any& value, std::vector<ffi::Tensor>* outputs) {
  if (auto tensor = value.as<ffi::Tensor>()) {
    outputs->push_back(*tensor);
    return;
  }
  for (const ffi::Any& part : value.cast<ffi::Array<ffi::Any>>()) Collect(part, outputs);
}

int Run(const std::string& path, const std::vector<std::string>& files) {
  ffi::json::Object manifest = ReadManifest(path);
  ffi::json::Object variant = manifest["variants"].cast<ffi::json::Array>()[0].cast<ffi::json::Object>();
  ffi::Module library = ffi::Module::LoadFromFile(path);
  ffi::Module machine = library->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
  machine->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, kPooledAllocator);
  ffi::Function main_function = machine->GetFunction("main").value();

  std::vector<ffi::Any> inputs;
  for (const ffi::Any& value : variant["inputs"].cast<ffi::json::Array>()) {
    ffi::json::Object spec = value.cast<ffi::json::Object>();
    std::vector<int64_t> shape = ShapeOf(spec);
    ffi::ShapeView sizes(shape.data(), shape.size());
    ffi::Tensor tensor = ffi::Tensor::FromNDAlloc(AlignedAllocator(), sizes, TypeOf(spec), kCpu);
    std::string name(spec["name"].cast<ffi::String>());
    inputs.size() < files.size() ? Read(files[inputs.size()], tensor, name) : Fill(tensor);
    inputs.push_back(tensor);
  }
  if (files.size() > inputs.size()) {
    throw std::runtime_error("found " + std::to_string(files.size()) + " files for " + std::to_string(inputs.size()) + " inputs");
  }

  for (const ffi::Tensor& weight : Weights(path, manifest, variant)) inputs.push_back(weight);
  std::vector<ffi::AnyView> arguments(inputs.begin(), inputs.end());
  ffi::Any result;
  main_function.CallPacked(arguments.data(), static_cast<int>(arguments.size()), &result);
  auto start = std::chrono::steady_clock::now();
  main_function.CallPacked(arguments.data(), static_cast<int>(arguments.size()), &result);
  std::chrono::duration<double, std::milli> taken = std::chrono::steady_clock::now() - start;

  std::vector<ffi::Tensor> outputs;
  Collect(result, &outputs);
  for (size_t index = 0; index < outputs.size(); ++index) {
    std::string name = "output_" + std::to_string(index) + ".bin";
    std::ofstream file(name, std::ios::binary);
    size_t bytes = SizeInBytes(outputs[index]);
    file.write(static_cast<const char*>(outputs[index].data_ptr()), static_cast<std::streamsize>(bytes));
    if (!file) throw std::runtime_error(name + ": cannot be written");
    std::cout << name << ": " << bytes << " bytes\n";
  }
  std::cout << "second run: " << taken.count() << " ms\n";
  return 0;
}

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: run_artifact model.so [input.bin ...]\n";
    return 2;
  }
  try {
    std::string path(argv[1]);  // without a slash the loader would look in its own folders
    return Run(path.find('/') == std::string::npos ? "./" + path : path, std::vector<std::string>(argv + 2, argv + argc));
  } catch (const std::exception& error) {
    std::cerr << "run_artifact: " << error.what() << "\n";
    return 4;
  }
}
